//! Rules of a schema when a definition writes them: whether they compile, and what they can cost.

use api::custom::{Node, Rule};
use cel::{Bounds, Program, Type};

use super::cel_types::{resource, type_of};
use super::rules::{field_path, variables};
use super::sizes;

/// What is wrong with a rule: its number, the field of it, and why.
pub(crate) struct Wrong {
    /// Number of the rule.
    pub index: usize,
    /// `rule`, `messageExpression`, `optionalOldSelf` or `fieldPath`.
    pub field: &'static str,
    /// Why.
    pub why: String,
}

/// The most that one run of an expression costs.
pub(crate) struct Cost {
    /// Number of the rule.
    pub index: usize,
    /// `rule` or `messageExpression`.
    pub field: &'static str,
    /// In upstream's units.
    pub most: u64,
}

/// The rules of one schema, without those below it.
#[derive(Default)]
pub(crate) struct Written {
    /// Everything that is wrong with them.
    pub wrong: Vec<Wrong>,
    /// What those that compile cost.
    pub costs: Vec<Cost>,
    /// How many values with these rules fit into a request.
    pub most_values: u64,
}

/// Looks at the rules of a schema. `root` tells that it is a resource's; `uncorrelated` is the place above in which
/// values cannot be told apart, if there is one.
pub(crate) fn written(node: &Node, root: bool, uncorrelated: Option<&str>) -> Written {
    if node.rules.is_empty() {
        return Written::default();
    }
    let seen = if root { resource(node) } else { node.clone() };
    let own = type_of(&seen).unwrap_or(Type::Dyn);
    let sizes = sizes::of(&seen);
    let mut look = Look {
        most_values: sizes.as_ref().map_or(1, sizes::Sizes::most_of_them),
        seen: &seen,
        own,
        bounds: sizes.map(|s| s.bounds).unwrap_or_default(),
        uncorrelated,
        out: Written::default(),
    };
    for (index, rule) in node.rules.iter().enumerate() {
        if !rule.rule.trim().is_empty() {
            look.rule(index, rule);
        }
    }
    look.out.most_values = look.most_values;
    look.out
}

struct Look<'a> {
    seen: &'a Node,
    own: Type,
    bounds: Bounds,
    most_values: u64,
    uncorrelated: Option<&'a str>,
    out: Written,
}

impl Look<'_> {
    fn wrong(&mut self, index: usize, field: &'static str, why: impl Into<String>) {
        let why = why.into();
        self.out.wrong.push(Wrong { index, field, why });
    }

    fn cost(&mut self, index: usize, field: &'static str, program: &Program) {
        let most = program.max_cost(None, &self.bounds);
        self.out.costs.push(Cost { index, field, most });
    }

    fn rule(&mut self, index: usize, rule: &Rule) {
        let variables = variables(rule, self.own.clone());
        let mut uses_old = false;
        match Program::compile(&rule.rule, &variables) {
            Err(error) => self.wrong(index, "rule", format!("compilation failed: {error}")),
            Ok(program) => {
                uses_old = program.uses("oldSelf");
                if matches!(program.result, Type::Bool | Type::Dyn) {
                    self.cost(index, "rule", &program);
                } else {
                    self.wrong(index, "rule", "cel expression must evaluate to a bool");
                }
            }
        }
        self.message(index, rule, &variables);
        match self.uncorrelated {
            Some(place) if uses_old => {
                let why = format!(
                    "oldSelf cannot be used on the uncorrelatable portion of the schema within {place}"
                );
                self.wrong(index, "rule", why);
            }
            _ if !uses_old && rule.optional_old_self.is_some() => {
                let why = "may not be set if oldSelf is not used in rule";
                self.wrong(index, "optionalOldSelf", why);
            }
            _ => {}
        }
        if !rule.field_path.is_empty() && field_path(self.seen, &rule.field_path).is_none() {
            self.wrong(index, "fieldPath", "must be a valid path");
        }
    }

    fn message(&mut self, index: usize, rule: &Rule, variables: &[(&str, Type)]) {
        const FIELD: &str = "messageExpression";
        if rule.message_expression.is_empty() {
            return;
        }
        match Program::compile(&rule.message_expression, variables) {
            Err(error) => {
                let why = format!("messageExpression compilation failed: {error}");
                self.wrong(index, FIELD, why);
            }
            Ok(program) if matches!(program.result, Type::String | Type::Dyn) => {
                self.cost(index, FIELD, &program);
            }
            Ok(_) => self.wrong(index, FIELD, "messageExpression must evaluate to a string"),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn most(mut schema: Value, rule: &str) -> u64 {
        schema["x-kubernetes-validations"] = json!([{"rule": rule}]);
        let node = Node::parse(&schema).unwrap();
        let found = written(&node, false, None);
        let why: Vec<&str> = found.wrong.iter().map(|w| w.why.as_str()).collect();
        assert!(why.is_empty(), "{rule}: {why:?}");
        found.costs[0].most
    }

    fn with(mut schema: Value, limit: &str, max: i64) -> Value {
        schema[limit] = max.into();
        schema
    }

    fn list(items: &Value) -> Value {
        json!({"type": "array", "items": items})
    }

    fn map(values: &Value) -> Value {
        json!({"type": "object", "additionalProperties": values})
    }

    fn of(kind: &str) -> Value {
        match kind {
            "int-or-string" => json!({"x-kubernetes-int-or-string": true}),
            "duration" | "date" | "date-time" | "byte" => json!({"type": "string", "format": kind}),
            "object" => json!({"type": "object", "required": ["required"],
                "properties": {"required": {"type": "string"}, "optional": {"type": "string"}}}),
            "array" => list(&of("number")),
            "map" => map(&of("number")),
            _ => json!({"type": kind}),
        }
    }

    /// Expected are the figures that upstream's own tests expect, without a limit and with one.
    #[test]
    fn lists_cost_what_they_do_elsewhere() {
        for (items, rule, free, limit, limited) in [
            ("number", "self.all(x, true)", 4_718_591, 10, 32),
            ("string", "self.all(x, true)", 3_145_727, 20, 62),
            ("boolean", "self.all(x, true)", 1_887_437, 5, 17),
            ("array", "self.all(x, true)", 3_145_727, 100, 302),
            ("object", "self.all(x, true)", 555_128, 50, 152),
            ("number", "self[1] == 0.0", 2, 5000, 2),
            ("string", "self[1] == self[1]", 314_577, 8, 314_577),
            (
                "number",
                "self.all(x, x == 0.0)",
                6_291_454,
                3 * 1024 * 2048,
                25_165_826,
            ),
            ("int-or-string", "self.all(x, true)", 4_718_591, 10, 32),
            ("int-or-string", "self[0] == 5", 3, 10, 3),
            ("boolean", "self[0] == false", 2, 25, 2),
            ("object", "self[0] == null", 2, 422, 2),
            ("array", "self[0][0] == -1.0", 3, 51, 3),
            ("map", "self.all(x, x.y == 25.2)", 6_291_452, 12, 74),
            ("map", "self[0].x > 2.0", 4, 3000, 4),
            ("duration", "self.all(x, true)", 2_359_295, 5, 17),
            ("duration", "self[0].getHours() == 2", 4, 525, 4),
            ("date", "self.all(x, true)", 725_936, 15, 47),
            ("date", "self[2].getDayOfMonth() == 13", 4, 42, 4),
            ("date-time", "self.all(x, true)", 428_963, 25, 77),
            ("date-time", "self[2].getMinutes() == 45", 4, 99, 4),
        ] {
            let schema = list(&of(items));
            assert_eq!(most(schema.clone(), rule), free, "{items} {rule}");
            let schema = with(schema, "maxItems", limit);
            assert_eq!(most(schema, rule), limited, "{items} {rule} of {limit}");
        }
        let nested = "self.all(x, self.all(y, self.all(z, true)))";
        assert!(most(list(&of("number")), nested) > 100_000_000);
        assert_eq!(
            most(with(list(&of("number")), "maxItems", 10), nested),
            3552
        );
    }

    #[test]
    fn maps_cost_what_they_do_elsewhere() {
        for (values, rule, free, limit, limited) in [
            ("number", "self.all(x, true)", 1_348_169, 10, 32),
            ("string", "self.all(x, true)", 1_179_647, 3, 11),
            ("boolean", "self.all(x, true)", 943_718, 100, 302),
            ("number", "self['x'] == 0.0", 2, 0, 2),
            ("int-or-string", "self.all(x, true)", 1_348_169, 15, 47),
            ("object", "self.all(x, true)", 428_963, 20, 62),
            ("map", "self.all(x, true)", 1_179_647, 10, 32),
            ("array", "self.all(x, true)", 1_179_647, 25, 77),
            ("duration", "self.all(x, true)", 1_048_577, 5, 17),
            ("date", "self.all(x, true)", 524_288, 10, 32),
            ("date-time", "self.all(x, true)", 349_526, 25, 77),
            ("integer", "oldSelf.size() == self.size()", 5, 10, 5),
            ("date-time", "self['a'] == self['b']", 8, 7, 8),
            ("duration", "self['c'] == self['d']", 8, 42, 8),
        ] {
            let schema = map(&of(values));
            assert_eq!(most(schema.clone(), rule), free, "{values} {rule}");
            let schema = with(schema, "maxProperties", limit);
            assert_eq!(most(schema, rule), limited, "{values} {rule} of {limit}");
        }
    }

    #[test]
    fn texts_cost_what_they_do_elsewhere() {
        for (rule, free, limit, limited) in [
            ("self.contains('test')", 314_574, 10, 5),
            ("self.startsWith('test')", 2, 15, 2),
            ("size(self + 'hello') > size('hello')", 314_578, 4, 7),
            ("self.matches('x')", 314_574, 50, 22),
            ("''.matches('(((((((((())))))))))[0-9]')", 7, 10, 7),
            ("self.matches('')", 1, 100, 1),
            ("self == 'x'", 2, 0, 1),
            ("self.find('[0-9]+') == ''", 629_147, 10, 11),
            ("self.lowerAscii() == 'lower!'", 314_575, 10, 6),
        ] {
            assert_eq!(most(of("string"), rule), free, "{rule}");
            let schema = with(of("string"), "maxLength", limit);
            assert_eq!(most(schema, rule), limited, "{rule} of {limit}");
        }
        assert_eq!(most(of("byte"), "self == b'x'"), 2);
        assert_eq!(most(with(of("byte"), "maxLength", 0), "self == b'x'"), 1);
        let words = json!({"type": "string", "enum": ["A", "B", "C", "LongValue"]});
        assert_eq!(most(words.clone(), "self.contains('A')"), 2);
        assert_eq!(
            most(with(words, "maxLength", 1000), "self.contains('A')"),
            401
        );
        assert_eq!(most(of("int-or-string"), "isQuantity(self)"), 314_574);
        let limited = with(of("int-or-string"), "maxLength", 20);
        assert_eq!(most(limited, "isQuantity(self)"), 9);
    }

    #[test]
    fn nested_schemas_cost_what_they_do_elsewhere() {
        let text = of("string");
        let limited = with(text.clone(), "maxLength", 10);
        let spec = |text: &Value| map(text);
        let rule = "self.all(x, x.contains(self[x]))";
        assert_eq!(most(spec(&text), rule), 2_752_507);
        assert_eq!(most(with(spec(&limited), "maxProperties", 10), rule), 72);

        let rule = "self.all(x, x['y'].required == 'z')";
        assert_eq!(most(list(&map(&of("object"))), rule), 7_340_027);
        let all = with(
            list(&with(map(&of("object")), "maxProperties", 10)),
            "maxItems",
            10,
        );
        assert_eq!(most(all, rule), 72);

        for (rule, free, bound) in [
            ("self.join(' ') == 'aa bb'", 329_853_068_905, 43),
            ("self.isSorted() == true", 329_854_432_052, 52),
        ] {
            assert_eq!(most(list(&text), rule), free, "{rule}");
            assert_eq!(
                most(with(list(&limited), "maxItems", 10), rule),
                bound,
                "{rule}"
            );
        }
        let fields = |text: &Value| {
            json!({"type": "object", "properties": {"str": text, "separator": text,
            "before": {"type": "string", "maxLength": 2}, "after": {"type": "string", "maxLength": 4}}})
        };
        let rule = "self.str.replace(self.before, self.after) == 'does not matter'";
        assert_eq!(most(fields(&text), rule), 629_154);
        assert_eq!(most(fields(&with(text.clone(), "maxLength", 4)), rule), 12);
        let rule = "self.str.split(self.separator) == []";
        assert_eq!(most(fields(&text), rule), 629_160);
        assert_eq!(most(fields(&limited), rule), 22);
    }

    #[test]
    fn names_are_never_long() {
        let node = Node::parse(&json!({"type": "object", "x-kubernetes-validations": [
            {"rule": "self.metadata.name.contains('x')"}, {"rule": "self.metadata.generateName.contains('x')"}]}));
        for cost in written(&node.unwrap(), true, None).costs {
            assert!((1..=10_000).contains(&cost.most), "{}", cost.most);
        }
    }
}
