//! Expressions, their values, and what is wrong with them.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::json;

use super::*;

const BUDGET: u64 = 1_000_000;

fn run(text: &str, variables: &[(&str, Value)]) -> Result<Value, String> {
    let types: Vec<(&str, Type)> = variables.iter().map(|(n, _)| (*n, Type::Dyn)).collect();
    let program = Program::compile(text, &types).map_err(|e| e.to_string())?;
    let mut budget = BUDGET;
    program
        .run(variables, &mut budget)
        .map_err(|e| e.to_string())
}

fn holds(text: &str) {
    let object = json!({"a": 1, "b": "two", "c": [1, 2, 3], "d": {"x": "y"}, "e": [{"k": "1", "v": 1}, {"k": "2", "v": 2}]});
    let variables = [("self", Value::from_json(&object))];
    let value = run(text, &variables);
    assert!(matches!(value, Ok(Value::Bool(true))), "{text}: {value:?}");
}

#[test]
fn the_language() {
    for text in [
        "self.a == 1 && self.b != 'one'",
        "self.a + 2 * 3 - 1 == 6",
        "-self.a < 0 && !(1 > 2)",
        "7 / 2 == 3 && -7 % 3 == -1 && 7.0 / 2.0 == 3.5",
        "1 < 1.5 && 2u >= 2 && 1 == 1",
        "self.c[0] == 1 && self.d['x'] == 'y' && self.d.x == \"y\"",
        "has(self.a) && !has(self.z)",
        "self.c.all(i, i > 0) && self.c.exists(i, i == 2) && self.c.exists_one(i, i == 3)",
        "self.c.filter(i, i > 1).map(i, i * 2) == [4, 6]",
        "self.c.map(i, i > 1, i * 2) == [4, 6]",
        "self.d.all(k, k == 'x') && self.d.exists(k, v, v == 'y')",
        "self.e.all(x, self.e.exists_one(y, y.k == x.k))",
        "2 in self.c && 'x' in self.d && !(9 in self.c)",
        "size(self.c) == 3 && self.b.size() == 3 && size('äö') == 2",
        "(self.a == 1 ? 'yes' : 'no') == 'yes'",
        "true || self.z == 1",
        "!(self.z == 1 && false)",
        "[1, 2].exists(i, i == 1 || self.z == i)",
        "{'a': 1, 'b': 2}.size() == 2 && {'a': 1}['a'] == 1",
        "type(1) == int && type('x') == string",
        "r'\\d' == '\\\\d' && '''a'b''' == \"a'b\" && '\\u00e9' == 'é'",
        "b'abc' == bytes('abc') && string(b'abc') == 'abc'",
        "int('12') == 12 && double('1.5') == 1.5 && string(1.0) == '1' && uint(3) == 3u",
        "0x10 == 16 && 1e3 == 1000.0 // a comment",
        "cel.bind(x, self.a + 1, x * x) == 4",
        "self.?z.orValue(5) == 5 && self.?a.orValue(5) == 1 && !self.?z.hasValue()",
        "self.?d.?x.orValue('') == 'y' && self.d[?'q'].orValue('n') == 'n'",
        "optional.of(1).optMap(x, x + 1).value() == 2",
        "[?self.?z, ?self.?a] == [1]",
        "self.c.transformList(i, v, i * v) == [0, 2, 6]",
        "{'a': 1}.transformMap(k, v, v + 1) == {'a': 2}",
        "['a', 'b'].transformMapEntry(i, v, {v: i}) == {'a': 0, 'b': 1}",
    ] {
        holds(text);
    }
}

#[test]
fn the_libraries() {
    for text in [
        "'hello'.charAt(1) == 'e' && 'a-b'.split('-') == ['a', 'b'] && ['a', 'b'].join('-') == 'a-b'",
        "'HeLLo'.lowerAscii() == 'hello' && ' x '.trim() == 'x' && 'abc'.substring(1, 2) == 'b'",
        "'abcabc'.indexOf('c') == 2 && 'abcabc'.lastIndexOf('a') == 3 && 'aXbX'.replace('X', '-', 1) == 'a-bX'",
        "'%s is %d, %.2f, %x'.format(['x', 5, 1.5, 255]) == 'x is 5, 1.50, ff'",
        "'abc123'.matches('^[a-z]+[0-9]+$') && 'abc123'.find('[0-9]+') == '123' && 'a1b2'.findAll('[0-9]') == ['1', '2']",
        "[1, 2, 3].isSorted() && [1, 2].sum() == 3 && [3, 1].min() == 1 && [3, 1].max() == 3 && [1, 2].indexOf(2) == 1",
        "sets.contains([1, 2, 3], [2]) && sets.equivalent([1, 2], [2, 1]) && sets.intersects([1], [1, 2])",
        "[1, 1, 2].distinct() == [1, 2] && [[1], [2]].flatten() == [1, 2] && [3, 1].sort() == [1, 3]",
        "timestamp('2024-01-02T03:04:05Z').getFullYear() == 2024 && timestamp('2024-01-02T03:04:05Z').getHours('+02:00') == 5",
        "duration('1h30m') > duration('89m') && duration('90s').getMinutes() == 1 && string(duration('90s')) == '90s'",
        "timestamp('2024-01-01T00:00:00Z') + duration('24h') == timestamp('2024-01-02T00:00:00Z')",
        "quantity('1Gi').isGreaterThan(quantity('1G')) && quantity('1.5').add(quantity('500m')).compareTo(quantity('2')) == 0",
        "isQuantity('1k') && !isQuantity('x') && quantity('50k').asInteger() == 50000 && quantity('-1').sign() == -1",
        "isIP('10.0.0.1') && ip('::1').family() == 6 && cidr('10.0.0.0/8').containsIP('10.1.2.3') && !isCIDR('10.0.0.0')",
        "cidr('192.168.0.0/16').containsCIDR('192.168.1.0/24') && cidr('10.1.2.3/8').masked() == cidr('10.0.0.0/8')",
        "url('https://u@example.com:80/a/b?k=v&k=w').getHost() == 'example.com:80' && url('https://example.com:80/a').getPort() == '80'",
        "url('https://example.com/a?k=v&k=w').getQuery() == {'k': ['v', 'w']} && isURL('/a') && !isURL('a')",
        "semver('1.2.3').isLessThan(semver('1.10.0')) && isSemver('1.0.0-rc.1') && !isSemver('1.0') && semver('v1.0', true).major() == 1",
        "math.greatest(1, 5, 3) == 5 && math.least([2, 1]) == 1 && math.abs(-3) == 3 && math.ceil(1.2) == 2.0",
        "!format.dns1123Label().validate('a-b').hasValue() && format.dns1123Label().validate('A').hasValue()",
        "base64.decode('YWJj') == b'abc' && base64.encode(b'abc') == 'YWJj' && jsonpatch.escapeKey('a/b') == 'a~1b'",
    ] {
        holds(text);
    }
}

#[test]
fn failures() {
    for (text, why) in [
        ("self.z == 1", "no such key: z"),
        ("self.c[5] == 1", "index out of bounds: 5"),
        ("1 / 0 == 1", "division by zero"),
        ("9223372036854775807 + 1 > 0", "integer overflow"),
        ("self.a == 1 && self.z", "no such key: z"),
        (
            "int('x') == 1",
            "strconv.ParseInt: parsing \"x\": invalid syntax",
        ),
    ] {
        let variables = [("self", Value::from_json(&json!({"a": 1, "c": []})))];
        assert_eq!(run(text, &variables).unwrap_err(), why, "{text}");
    }
}

#[test]
fn expressions_are_paid_for() {
    let items: Vec<i64> = (0..1000).collect();
    let variables = [("self", Value::from_json(&json!(items)))];
    let text = "self.all(a, self.all(b, self.all(c, a + b + c >= 0)))";
    assert_eq!(
        run(text, &variables).unwrap_err(),
        "operation cancelled: actual cost limit exceeded"
    );
}

fn object() -> Type {
    let fields: BTreeMap<String, Type> = [
        ("a".to_owned(), Type::Int),
        ("s".to_owned(), Type::String),
        ("l".to_owned(), Type::List(Arc::new(Type::String))),
        (
            "m".to_owned(),
            Type::Map(Arc::new(Type::String), Arc::new(Type::Int)),
        ),
    ]
    .into();
    Type::Object(Arc::new(Fields {
        name: "object".to_owned(),
        fields,
    }))
}

#[test]
fn types_are_checked_when_rules_are_written() {
    let variables = [("self", object())];
    for text in [
        "self.a > 1 && self.s.startsWith('x') && self.l.all(i, i.size() > 0)",
        "self.m.all(k, self.m[k] > 0) && 'x' in self.l && self.a < 1.5",
        "self.l.map(i, i + 'x').join(',') == '' && has(self.a)",
        "self.?a.orValue(1) == 1 && (self.a == 1 ? 'a' : 'b') == 'a'",
        "quantity(self.s).isLessThan(quantity('1')) && type(self.a) == int",
        "dyn(self.a) == 'x' || self.l.exists(i, v, v == 'x')",
    ] {
        assert!(
            Program::compile(text, &variables).is_ok(),
            "{text}: {:?}",
            Program::compile(text, &variables)
        );
    }
    for (text, why) in [
        (
            "self.b > 1",
            "ERROR: <input>:1:5: undefined field 'b'\n | self.b > 1\n | ....^",
        ),
        (
            "self.a == 'x'",
            "ERROR: <input>:1:8: found no matching overload for '_==_' applied to '(int, string)'\n | self.a == 'x'\n | .......^",
        ),
        (
            "other",
            "ERROR: <input>:1:1: undeclared reference to 'other' (in container '')\n | other\n | ^",
        ),
        (
            "self.a.contains('x')",
            "ERROR: <input>:1:16: found no matching overload for 'contains' applied to 'int.(string)'\n | self.a.contains('x')\n | ...............^",
        ),
        (
            "self.a.all(i, true)",
            "ERROR: <input>:1:5: expression of type 'int' cannot be range of a comprehension (must be list, map, or dynamic)\n | self.a.all(i, true)\n | ....^",
        ),
        (
            "nope(1)",
            "ERROR: <input>:1:5: undeclared reference to 'nope' (in container '')\n | nope(1)\n | ....^",
        ),
        (
            "self.a ==",
            "ERROR: <input>:1:10: Syntax error: mismatched input '<EOF>'\n | self.a ==\n | .........^",
        ),
        (
            "[1, 'a'] == []",
            "ERROR: <input>:1:5: expected type 'int' but found 'string'\n | [1, 'a'] == []\n | ....^",
        ),
    ] {
        assert_eq!(Program::compile(text, &variables).unwrap_err().text, why);
    }
    let program = Program::compile("self.l.all(oldSelf, oldSelf == '')", &variables).unwrap();
    assert!(!program.uses("oldSelf") && program.uses("self"));
    assert_eq!(program.result, Type::Bool);
}

#[test]
fn deep_expressions_are_refused() {
    let deep = format!("{}1{}", "(".repeat(5000), ")".repeat(5000));
    assert!(Program::compile(&deep, &[]).is_err());
    assert!(Program::compile(&"-".repeat(5000), &[]).is_err());
    assert!(Program::compile(&format!("a{}", ".b".repeat(5000)), &[("a", Type::Dyn)]).is_err());
}

proptest! {
    #[test]
    fn nothing_panics(text in "[a-c0-9 .+*/%<>=!&|?:,()\\[\\]{}'\"-]{0,40}") {
        let variables = [("a", Value::from_json(&json!({"b": [1, 2]})))];
        let _ = run(&text, &variables);
    }
}
