//! Characters to tokens.

use crate::error::Fault;

/// A token and where it begins, in characters.
#[derive(Debug, Clone, PartialEq)]
pub struct Spot {
    /// Offset of its first character.
    pub at: usize,
    /// The token.
    pub token: Token,
}

/// Tokens.
#[derive(Debug, Clone, PartialEq)]
pub enum Token {
    /// An identifier or keyword.
    Word(String),
    /// A field name in backquotes.
    Quoted(String),
    /// An integer without a sign.
    Int(u64),
    /// An unsigned integer.
    Uint(u64),
    /// A floating point number.
    Double(f64),
    /// A string.
    Text(String),
    /// Bytes.
    Bytes(Vec<u8>),
    /// An operator or bracket.
    Sign(&'static str),
    /// Behind the last one.
    End,
}

const SIGNS: [&str; 27] = [
    "&&", "||", "==", "!=", "<=", ">=", ".?", "[?", "<", ">", "+", "-", "*", "/", "%", "!", "?",
    ":", ".", ",", "(", ")", "[", "]", "{", "}", "=",
];

/// Splits an expression into tokens.
///
/// # Errors
/// The first character that begins none.
pub fn tokens(text: &str) -> Result<Vec<Spot>, Fault> {
    let mut lexer = Lexer {
        chars: text.chars().collect(),
        at: 0,
    };
    let mut out = Vec::new();
    loop {
        lexer.space();
        let at = lexer.at;
        let token = lexer.token()?;
        let done = token == Token::End;
        out.push(Spot { at, token });
        if done {
            return Ok(out);
        }
    }
}

struct Lexer {
    chars: Vec<char>,
    at: usize,
}

impl Lexer {
    fn peek(&self, ahead: usize) -> Option<char> {
        self.chars.get(self.at + ahead).copied()
    }

    fn fault(&self, why: impl Into<String>) -> Fault {
        Fault::new(self.at, format!("Syntax error: {}", why.into()))
    }

    fn space(&mut self) {
        while let Some(c) = self.peek(0) {
            if c == '/' && self.peek(1) == Some('/') {
                while self.peek(0).is_some_and(|c| c != '\n') {
                    self.at += 1;
                }
            } else if c.is_whitespace() {
                self.at += 1;
            } else {
                return;
            }
        }
    }

    fn token(&mut self) -> Result<Token, Fault> {
        let Some(c) = self.peek(0) else {
            return Ok(Token::End);
        };
        if c.is_ascii_digit() || (c == '.' && self.peek(1).is_some_and(|c| c.is_ascii_digit())) {
            return self.number();
        }
        if let Some(length) = self.string_prefix() {
            return self.string(length);
        }
        if c.is_ascii_alphabetic() || c == '_' {
            let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
            return Ok(Token::Word(self.take(word)));
        }
        if c == '`' {
            self.at += 1;
            let name = self.take(|c| c != '`' && c != '\n');
            if self.peek(0) != Some('`') || name.is_empty() {
                return Err(self.fault("unterminated field name"));
            }
            self.at += 1;
            return Ok(Token::Quoted(name));
        }
        let starts = |sign: &&&str| {
            let mut signs = sign.chars().enumerate();
            signs.all(|(i, s)| self.peek(i) == Some(s))
        };
        match SIGNS.iter().find(starts) {
            Some(sign) => {
                self.at += sign.len();
                Ok(Token::Sign(sign))
            }
            None => Err(self.fault(format!("token recognition error at: '{c}'"))),
        }
    }

    fn take(&mut self, wanted: impl Fn(char) -> bool) -> String {
        let mut out = String::new();
        while let Some(c) = self.peek(0).filter(|c| wanted(*c)) {
            out.push(c);
            self.at += 1;
        }
        out
    }

    fn number(&mut self) -> Result<Token, Fault> {
        let hex = self.peek(0) == Some('0') && matches!(self.peek(1), Some('x' | 'X'));
        if hex {
            self.at += 2;
        }
        let radix = if hex { 16 } else { 10 };
        let mut text = self.take(|c| c.is_digit(radix));
        let mut float = false;
        if !hex {
            if self.peek(0) == Some('.') && self.peek(1).is_some_and(|c| c.is_ascii_digit()) {
                float = true;
                self.at += 1;
                text.push('.');
                text.push_str(&self.take(|c| c.is_ascii_digit()));
            }
            let signed = matches!(self.peek(1), Some('+' | '-'));
            let digit = self.peek(if signed { 2 } else { 1 });
            if matches!(self.peek(0), Some('e' | 'E')) && digit.is_some_and(|c| c.is_ascii_digit())
            {
                float = true;
                text.push('e');
                self.at += 1;
                if signed {
                    text.extend(self.peek(0));
                    self.at += 1;
                }
                text.push_str(&self.take(|c| c.is_ascii_digit()));
            }
        }
        if float {
            let value = text
                .parse()
                .map_err(|_| self.fault("invalid double literal"))?;
            return Ok(Token::Double(value));
        }
        let value = u64::from_str_radix(&text, radix);
        if matches!(self.peek(0), Some('u' | 'U')) {
            self.at += 1;
            let value = value.map_err(|_| self.fault("invalid uint literal"))?;
            return Ok(Token::Uint(value));
        }
        value
            .map(Token::Int)
            .map_err(|_| self.fault("invalid int literal"))
    }

    /// How many letters stand before the quote of a string; `None` if there is no string.
    fn string_prefix(&self) -> Option<usize> {
        let letters = (0..3).find(|i| !matches!(self.peek(*i), Some('r' | 'R' | 'b' | 'B')))?;
        matches!(self.peek(letters), Some('"' | '\'')).then_some(letters)
    }

    fn string(&mut self, letters: usize) -> Result<Token, Fault> {
        let prefix: String = self.chars[self.at..self.at + letters].iter().collect();
        let prefix = prefix.to_ascii_lowercase();
        let (raw, bytes) = (prefix.contains('r'), prefix.contains('b'));
        self.at += letters;
        let quote = self.peek(0).unwrap_or('"');
        let triple = self.peek(1) == Some(quote) && self.peek(2) == Some(quote);
        let width = if triple { 3 } else { 1 };
        self.at += width;
        let mut out = Vec::new();
        loop {
            let Some(c) = self.peek(0).filter(|c| triple || *c != '\n') else {
                return Err(self.fault("unterminated string"));
            };
            if (0..width).all(|i| self.peek(i) == Some(quote)) {
                self.at += width;
                break;
            }
            self.at += 1;
            if c == '\\' && !raw {
                self.escape(&mut out, bytes)?;
            } else {
                out.extend(c.to_string().bytes());
            }
        }
        if bytes {
            return Ok(Token::Bytes(out));
        }
        String::from_utf8(out)
            .map(Token::Text)
            .map_err(|_| self.fault("string is no UTF-8"))
    }

    fn escape(&mut self, out: &mut Vec<u8>, bytes: bool) -> Result<(), Fault> {
        let c = self.peek(0).unwrap_or_default();
        self.at += 1;
        let plain = match c {
            'a' => 7,
            'b' => 8,
            'f' => 12,
            'n' => b'\n',
            'r' => b'\r',
            't' => b'\t',
            'v' => 11,
            '\\' | '"' | '\'' | '`' | '?' => c as u8,
            'x' | 'X' => return self.code(2, 16, out, bytes),
            'u' if !bytes => return self.code(4, 16, out, false),
            'U' if !bytes => return self.code(8, 16, out, false),
            '0'..='3' => {
                self.at -= 1;
                return self.code(3, 8, out, bytes);
            }
            _ => return Err(self.fault("invalid escape sequence")),
        };
        out.push(plain);
        Ok(())
    }

    fn code(
        &mut self,
        digits: usize,
        radix: u32,
        out: &mut Vec<u8>,
        byte: bool,
    ) -> Result<(), Fault> {
        let end = (self.at + digits).min(self.chars.len());
        let text: String = self.chars[self.at..end].iter().collect();
        let code = u32::from_str_radix(&text, radix)
            .ok()
            .filter(|_| text.len() == digits);
        self.at = end;
        match (code, byte) {
            (Some(code), true) if code < 256 => out.push(code as u8),
            (Some(code), false) => match char::from_u32(code) {
                Some(c) => out.extend(c.to_string().bytes()),
                None => return Err(self.fault("invalid unicode code point")),
            },
            _ => return Err(self.fault("invalid escape sequence")),
        }
        Ok(())
    }
}
