//! What upstream's own tests expect of its estimates, for variables with the sizes that they give.

use std::sync::Arc;

use super::*;
use crate::Program;

fn leaf(max: u64) -> Bounds {
    Bounds {
        max,
        ..Bounds::default()
    }
}

fn list(max: u64, items: Bounds) -> Bounds {
    Bounds {
        items: Some(Box::new(items)),
        ..leaf(max)
    }
}

fn of(item: Type) -> Type {
    Type::List(Arc::new(item))
}

fn map(value: Type) -> Type {
    Type::Map(Arc::new(Type::String), Arc::new(value))
}

fn check(text: &str, kind: &Type, bounds: &Bounds, most: u64) {
    let variables = [("self", kind.clone()), ("oldSelf", kind.clone())];
    let program = Program::compile(text, &variables).unwrap_or_else(|e| panic!("{text}: {e}"));
    assert_eq!(program.max_cost(None, bounds), most, "{text}");
}

#[test]
fn literals_and_operators() {
    for (text, most) in [
        ("'Hello World!'", 0),
        ("[1, 2, 3]", 10),
        ("{'a': 1, 'b': 2, 'c': 3}", 30),
        ("[1, 2, 3].all(x, true)", 20),
        ("'123'.matches('[0-9]')", 2),
        ("true || false", 0),
        ("1 < 2", 1),
        ("1 == 2", 1),
        ("2 in [1, 2, 3]", 13),
        ("1 + 1", 1),
        ("true ? 1 : 2", 0),
        ("size('123')", 1),
        ("string(1)", 1),
        ("type(1)", 1),
        ("((5 != 6) == (1 == 2)) == ((3 <= 4) == (9 != 9))", 7),
        ("[1,2,3,4,5].map(x, x)", 86),
        ("[1,2,3,4,5].map(x, x).map(x, x)", 162),
        ("[1,2,3,4,5].map(x, x)[4]", 87),
        ("[[1,2],[1,2],[1,2],[1,2],[1,2]][4]", 61),
        (
            "{'a': [1,2], 'b': [1,2], 'c': [1,2], 'd': [1,2], 'e': [1,2]}.b",
            81,
        ),
        ("[1,2,3,4,5].map(x, x).map(x, x) + [1]", 173),
    ] {
        check(text, &Type::Dyn, &leaf(0), most);
    }
}

#[test]
fn sizes_of_variables() {
    let text = Type::String;
    for (expression, kind, bounds, most) in [
        ("self", of(Type::Int), leaf(0), 1),
        ("self['key']", map(Type::String), leaf(0), 2),
        ("self.all(x, true)", of(Type::Int), list(100, leaf(0)), 302),
        (
            "self.all(x, x.all(y, true))",
            of(of(Type::Int)),
            list(50, list(10, leaf(0))),
            1752,
        ),
        ("self.matches('[0-9]')", text.clone(), leaf(500), 103),
        ("self.contains(oldSelf)", text.clone(), leaf(500), 2502),
        ("self.startsWith(oldSelf)", text.clone(), leaf(500), 52),
        ("self.size()", text.clone(), leaf(500), 2),
        ("string(self)", Type::Bytes, leaf(500), 51),
        ("string(self) == string(self)", Type::Bytes, leaf(500), 152),
        ("bytes(self) == bytes(self)", text.clone(), leaf(500), 302),
        (
            "(self + oldSelf).all(x, true)",
            of(Type::Int),
            list(10, leaf(0)),
            64,
        ),
        (
            "'abcdefg'.contains(self + oldSelf)",
            text.clone(),
            leaf(10),
            6,
        ),
        ("self.size() == oldSelf.size()", of(Type::Int), leaf(0), 5),
        (
            "self.endsWith('abcdefghijklmnopqrstuvwxyz') == oldSelf.endsWith('abcdefghijklmnopqrstuvwxyz')",
            text,
            leaf(0),
            9,
        ),
    ] {
        check(expression, &kind, &bounds, most);
    }
}

#[test]
fn keys_and_values_of_maps() {
    let nested = Bounds {
        max: 5,
        items: Some(Box::new(list(10, leaf(0)))),
        keys: Some(Box::new(leaf(10))),
        ..Bounds::default()
    };
    let kind = map(map(Type::Int));
    check("self.all(k, self[k].all(x, true))", &kind, &nested, 187);
    check("self.all(k, k.contains(k))", &kind, &nested, 32);
}

#[test]
fn what_has_no_end_costs_the_most_there_is() {
    let text =
        "self.all(a, self.all(b, self.all(c, self.all(d, self.all(e, a + b + c + d + e > 0)))))";
    check(text, &of(Type::Int), &list(u64::MAX, leaf(0)), u64::MAX);
}
