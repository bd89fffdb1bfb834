//! `metadata.managedFields`: who set which fields, by which operation, through which version.

use api::meta;
use api::time::{self, Timestamp};
use serde_json::{Map, Value};

use super::set::Set;

/// Most entries of updates; the oldest are put together beyond it. Entries of applies are not bounded: they are
/// needed to apply again.
const MAX_UPDATE_MANAGERS: usize = 10;
/// Who owns what the oldest updates set.
const OLD_UPDATES: &str = "ancient-changes";

/// Who writes: what tells entries apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manager {
    /// The name the client gave.
    pub name: String,
    /// Whether it applies rather than updates.
    pub applies: bool,
    /// Version of the objects it writes. Appliers have one entry, whatever the version.
    pub api_version: String,
    /// Subresource it writes through, or empty.
    pub subresource: String,
}

impl Manager {
    /// Whether both mean the same entry.
    pub fn is(&self, other: &Self) -> bool {
        self.name == other.name
            && self.applies == other.applies
            && self.subresource == other.subresource
            && (self.applies || self.api_version == other.api_version)
    }

    /// Upstream's text of what tells entries apart: conflicts are sorted by it.
    pub(super) fn identifier(&self) -> String {
        let quoted = |s: &str| Value::from(s).to_string();
        let mut out = format!("{{\"manager\":{}", quoted(&self.name));
        let operation = if self.applies { "Apply" } else { "Update" };
        out.push_str(&format!(",\"operation\":\"{operation}\""));
        if !self.applies {
            out.push_str(&format!(",\"apiVersion\":{}", quoted(&self.api_version)));
        }
        if !self.subresource.is_empty() {
            out.push_str(&format!(",\"subresource\":{}", quoted(&self.subresource)));
        }
        out.push('}');
        out
    }
}

/// As messages name a manager.
impl std::fmt::Display for Manager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.name)?;
        if !self.subresource.is_empty() {
            write!(f, " with subresource {:?}", self.subresource)?;
        }
        if !self.applies {
            write!(f, " using {}", self.api_version)?;
        }
        Ok(())
    }
}

/// What one manager owns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Who.
    pub manager: Manager,
    /// When it last changed something; entries of appliers that never did have none.
    pub time: Option<String>,
    /// Which fields.
    set: Set,
    /// The same as it was read, as long as nothing changed.
    fields: Option<Value>,
}

impl Entry {
    /// What a manager owns.
    pub fn new(manager: Manager, time: Option<String>, set: Set) -> Self {
        Self {
            manager,
            time,
            set,
            fields: None,
        }
    }

    /// Which fields it owns.
    pub fn set(&self) -> &Set {
        &self.set
    }

    /// Gives it other fields; returns those it had, if they are not the same.
    pub fn own(&mut self, set: Set) -> Option<Set> {
        if set == self.set {
            return None;
        }
        self.fields = None;
        Some(std::mem::replace(&mut self.set, set))
    }

    /// Gives it more fields.
    pub fn gain(&mut self, set: Set) {
        self.fields = None;
        self.set = std::mem::take(&mut self.set).joined(set);
    }

    /// Takes fields from it.
    pub fn lose(&mut self, set: &Set) {
        if self.set.subtract(set) {
            self.fields = None;
        }
    }

    fn seconds(&self) -> i64 {
        self.time
            .as_deref()
            .and_then(time::parse)
            .map_or(0, Timestamp::as_second)
    }
}

/// Reads the list; what is absent is empty.
///
/// # Errors
/// In upstream's words, for entries that make no sense.
pub fn decode(list: Option<&Value>) -> Result<Vec<Entry>, String> {
    let mut entries: Vec<Entry> = Vec::new();
    let list = list
        .and_then(Value::as_array)
        .map_or(&[][..], Vec::as_slice);
    for (index, entry) in list.iter().enumerate() {
        let entry = decode_entry(entry, index)?;
        match entries.iter_mut().find(|e| e.manager.is(&entry.manager)) {
            Some(same) => *same = entry,
            None => entries.push(entry),
        }
    }
    Ok(entries)
}

fn decode_entry(entry: &Value, index: usize) -> Result<Entry, String> {
    let text = |field: &str| entry.get(field).and_then(Value::as_str).unwrap_or_default();
    let applies = match text("operation") {
        "Apply" => true,
        "Update" => false,
        _ => return Err("operation must be `Apply` or `Update`".to_owned()),
    };
    if text("apiVersion").is_empty() {
        return Err("apiVersion must not be empty".to_owned());
    }
    match text("fieldsType") {
        "FieldsV1" => {}
        "" => {
            return Err(format!(
                "missing fieldsType in managed fields entry {index}"
            ));
        }
        other => {
            return Err(format!(
                "invalid fieldsType {other:?} in managed fields entry {index}"
            ));
        }
    }
    let fields = entry.get("fieldsV1");
    let set = match fields {
        Some(fields) => Set::from_fields(fields).map_err(|e| format!("error decoding set: {e}"))?,
        None => Set::default(),
    };
    Ok(Entry {
        manager: Manager {
            name: text("manager").to_owned(),
            applies,
            api_version: text("apiVersion").to_owned(),
            subresource: text("subresource").to_owned(),
        },
        time: entry.get("time").and_then(Value::as_str).map(str::to_owned),
        set,
        fields: fields.cloned(),
    })
}

/// Writes the list, sorted as upstream does; `None` without entries.
pub fn encode(mut entries: Vec<Entry>) -> Option<Value> {
    if entries.is_empty() {
        return None;
    }
    entries.sort_by_cached_key(|e| {
        let m = &e.manager;
        (
            !m.applies,
            e.seconds(),
            m.name.clone(),
            m.api_version.clone(),
            m.subresource.clone(),
        )
    });
    Some(entries.into_iter().map(encode_entry).collect())
}

fn encode_entry(entry: Entry) -> Value {
    let manager = &entry.manager;
    let mut out = Map::with_capacity(7);
    let operation = if manager.applies { "Apply" } else { "Update" };
    if !manager.name.is_empty() {
        out.insert("manager".into(), manager.name.as_str().into());
    }
    out.insert("operation".into(), operation.into());
    out.insert("apiVersion".into(), manager.api_version.as_str().into());
    if let Some(time) = &entry.time {
        out.insert("time".into(), time.as_str().into());
    }
    out.insert("fieldsType".into(), "FieldsV1".into());
    let fields = entry.fields.unwrap_or_else(|| entry.set.to_fields());
    out.insert("fieldsV1".into(), fields);
    if !manager.subresource.is_empty() {
        out.insert("subresource".into(), manager.subresource.as_str().into());
    }
    Value::Object(out)
}

/// Whether a list asks to forget who owns what: an empty one, or one with an empty entry.
pub fn is_reset(list: Option<&Value>) -> bool {
    match list.and_then(Value::as_array).map(Vec::as_slice) {
        Some([]) => true,
        Some([one]) => one.as_object().is_some_and(Map::is_empty),
        _ => false,
    }
}

/// Puts the oldest updates together, by version, until there are few enough.
pub fn cap(entries: &mut Vec<Entry>) {
    let mut updates: Vec<usize> = (0..entries.len())
        .filter(|i| !entries[*i].manager.applies)
        .collect();
    let mut too_many = updates.len().saturating_sub(MAX_UPDATE_MANAGERS);
    if too_many == 0 {
        return;
    }
    updates.sort_by_cached_key(|i| (entries[*i].seconds(), entries[*i].manager.identifier()));
    // The first of a version waits for a second one to be put together with.
    let mut first: Vec<(String, usize)> = Vec::new();
    let mut gone = vec![false; entries.len()];
    for at in updates {
        if too_many == 0 {
            break;
        }
        let version = entries[at].manager.api_version.clone();
        let Some((_, waiting)) = first.iter().find(|(v, _)| *v == version) else {
            first.push((version, at));
            continue;
        };
        let waiting = *waiting;
        let bucket = Manager {
            name: OLD_UPDATES.to_owned(),
            applies: false,
            api_version: version,
            subresource: String::new(),
        };
        let into = (0..entries.len())
            .find(|i| !gone[*i] && entries[*i].manager.is(&bucket))
            .unwrap_or_else(|| {
                entries[waiting].manager = bucket;
                waiting
            });
        if into == at {
            continue;
        }
        let more = std::mem::take(&mut entries[at].set);
        entries[into].gain(more);
        // What was put in last is the newest.
        entries[into].time = entries[at].time.clone();
        gone[at] = true;
        too_many -= 1;
    }
    let mut gone = gone.into_iter();
    entries.retain(|_| !gone.next().unwrap_or(false));
}

/// Puts back the times of `before` if `after` differs in nothing else: such a write changes nothing.
pub fn keep_times(before: &Value, after: &mut Value) {
    const AT: &[&str] = &["metadata", "managedFields"];
    let (Some(old), Some(new)) = (meta::get(before, AT), meta::get(after, AT)) else {
        return;
    };
    if !only_times_differ(old, new) {
        return;
    }
    let new = new.clone();
    meta::set(after, AT, old.clone());
    if after != before {
        meta::set(after, AT, new);
    }
}

/// Whether two lists have the same entries but for times, some of which differ.
fn only_times_differ(a: &Value, b: &Value) -> bool {
    let (Some(a), Some(b)) = (a.as_array(), b.as_array()) else {
        return false;
    };
    let rest = |m: &Map<String, Value>| m.len() - usize::from(m.contains_key("time"));
    let same = |a: &Value, b: &Value| {
        let (Some(a), Some(b)) = (a.as_object(), b.as_object()) else {
            return false;
        };
        rest(a) == rest(b)
            && a.iter()
                .filter(|(k, _)| *k != "time")
                .all(|(k, v)| b.get(k) == Some(v))
    };
    a != b && a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn update(name: &str, seconds: i64, version: &str) -> Value {
        let at = Timestamp::from_second(seconds).unwrap();
        json!({"manager": name, "operation": "Update", "apiVersion": version, "time": time::format(at),
            "fieldsType": "FieldsV1", "fieldsV1": {"f:data": {format!("f:{name}"): {}}}})
    }

    #[test]
    fn entries_are_sorted() {
        let apply = json!({"manager": "z", "operation": "Apply", "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": {"f:data": {"f:a": {}}}, "subresource": "status"});
        let list = json!([
            update("b", 5, "v1"),
            update("a", 5, "v1"),
            update("c", 1, "v1"),
            apply
        ]);
        let out = encode(decode(Some(&list)).unwrap()).unwrap();
        let names: Vec<&str> = out
            .as_array()
            .unwrap()
            .iter()
            .map(|e| e["manager"].as_str().unwrap())
            .collect();
        assert_eq!(names, ["z", "c", "a", "b"]);
        assert_eq!(out[0], list[3]);
        assert_eq!(encode(Vec::new()), None);
        assert_eq!(
            decode(Some(&json!([{}]))),
            Err("operation must be `Apply` or `Update`".to_owned())
        );
        assert!(is_reset(Some(&json!([]))) && is_reset(Some(&json!([{}]))));
        assert!(!is_reset(None) && !is_reset(Some(&list)));
    }

    #[test]
    fn old_updates_are_put_together() {
        let list: Value = (0..12)
            .map(|i| update(&format!("m{i:02}"), i, if i == 1 { "v2" } else { "v1" }))
            .collect();
        let mut entries = decode(Some(&list)).unwrap();
        cap(&mut entries);
        assert_eq!(entries.len(), 10);
        let bucket = entries
            .iter()
            .find(|e| e.manager.name == OLD_UPDATES)
            .unwrap();
        assert_eq!(bucket.set.texts(), [".data.m00", ".data.m02", ".data.m03"]);
        assert_eq!(bucket.time.as_deref(), Some("1970-01-01T00:00:03Z"));
        // One more joins them, although it is not the oldest any more.
        entries.push(
            decode(Some(&json!([update("x", 20, "v1")])))
                .unwrap()
                .remove(0),
        );
        cap(&mut entries);
        assert_eq!(entries.len(), 10);
        assert!(entries.iter().any(|e| e.manager.name == "x"));
    }

    #[test]
    fn times_alone_are_no_change() {
        let of = |time: i64, data: &str| json!({"metadata": {"managedFields": [update("a", time, "v1")]}, "data": data});
        let before = of(1, "x");
        for (mut after, kept) in [(of(9, "x"), true), (of(9, "y"), false)] {
            keep_times(&before, &mut after);
            assert_eq!(after == before, kept);
            assert_eq!(
                after["metadata"]["managedFields"][0]["time"] == "1970-01-01T00:00:09Z",
                !kept
            );
        }
    }
}
