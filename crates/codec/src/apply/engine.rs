//! Keeping track of owners on any write, and merging applied configurations.

use api::{Schema, Status, StatusCause, meta, time};
use serde_json::Value;

use super::managers::{self, Entry, Manager};
use super::merge::{merge, reconcile, remove, with_declared_parents};
use super::set::Set;
use super::typed::{EMPTY_STRUCT, Ty};
use super::validate::validate;
use super::walk::{Comparison, compare, field_set};
use super::{Applied, Context, last_applied};

/// Fields nobody owns.
const STRIPPED: &[&[&str]] = &[
    &["apiVersion"],
    &["kind"],
    &["metadata"],
    &["metadata", "name"],
    &["metadata", "namespace"],
    &["metadata", "creationTimestamp"],
    &["metadata", "selfLink"],
    &["metadata", "uid"],
    &["metadata", "clusterName"],
    &["metadata", "generation"],
    &["metadata", "managedFields"],
    &["metadata", "resourceVersion"],
];
/// Who owns what was there before the first apply of an object without known owners.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";
/// Where owners are kept.
const MANAGED_FIELDS: &[&str] = &["metadata", "managedFields"];

fn stripped() -> &'static Set {
    static SET: std::sync::LazyLock<Set> = std::sync::LazyLock::new(|| Set::of_fields(STRIPPED));
    &SET
}

/// One field that someone else owns and that an apply would change.
struct Conflict<'a> {
    manager: &'a Manager,
    path: String,
}

/// Why an apply came to nothing.
enum Refused {
    Status(Box<Status>),
    /// Fields of others, by manager, sorted.
    Conflicts(Vec<(Manager, Set)>),
}

impl From<String> for Refused {
    fn from(why: String) -> Self {
        Self::Status(Box::new(Status::failure(500, "", why)))
    }
}

impl Context<'_> {
    fn root(&self) -> Ty<'_> {
        Ty::Object(self.schema)
    }

    fn manager(&self, name: &str, applies: bool) -> Manager {
        let name = if name.is_empty() { "unknown" } else { name };
        Manager {
            name: name.to_owned(),
            applies,
            api_version: self.api_version.to_owned(),
            subresource: self.subresource.to_owned(),
        }
    }

    fn now(&self) -> Option<String> {
        Some(time::format(self.now))
    }

    /// Writes into `new` who owns what after an update by `manager` that made `new` of `live` (`None` on create).
    ///
    /// Cannot fail: when owners cannot be found out, they stay those of `live`.
    pub fn track(&self, live: Option<&Value>, new: &mut Value, manager: &str) {
        let before = live.and_then(|l| meta::get(l, MANAGED_FIELDS));
        let asked = meta::remove(new, MANAGED_FIELDS).filter(|v| !v.is_null());
        let after = self
            .updated(live, new, asked.as_ref(), manager)
            .unwrap_or_else(|_| before.cloned());
        put_managed(new, after);
    }

    /// The new list of owners.
    fn updated(
        &self,
        live: Option<&Value>,
        new: &Value,
        asked: Option<&Value>,
        manager: &str,
    ) -> Result<Option<Value>, String> {
        let before = live.and_then(|l| meta::get(l, MANAGED_FIELDS));
        let mut source = before;
        if self.subresource.is_empty() {
            // Clients may change the list itself, or have it forgotten, through the main resource.
            if managers::is_reset(asked) {
                source = None;
            } else if asked != before && managers::decode(asked).is_ok_and(|e| !e.is_empty()) {
                source = asked;
            }
        }
        let old = live.unwrap_or(&EMPTY_STRUCT);
        let own = self.filtered(compare(old, new, self.root())?);
        if own.is_same() && live.is_some() && source == before {
            return Ok(before.cloned());
        }
        let entries = managers::decode(source).unwrap_or_default();
        if entries.is_empty() && live.is_some() {
            // Not tracked until the first apply.
            return Ok(None);
        }
        let mut entries = self.reconciled(entries);
        let compared = Versions {
            context: self,
            live: old,
            new,
            own: &own,
            others: Vec::new(),
        };
        self.take_from_others(&mut entries, compared, None)?;
        let changed = own.into_changed();
        if !changed.is_empty() {
            let own_entry = self.entry(&mut entries, self.manager(manager, false));
            own_entry.gain(changed);
            own_entry.time = self.now();
        }
        managers::cap(&mut entries);
        Ok(managers::encode(entries))
    }

    /// What the writer can be said to have changed: not what nobody owns, nor what this resource resets.
    fn filtered(&self, comparison: Comparison) -> Comparison {
        comparison.map(|set| self.filter(set))
    }

    fn filter(&self, mut set: Set) -> Set {
        set.subtract(stripped());
        self.reset.filter(set)
    }

    fn reconciled(&self, mut entries: Vec<Entry>) -> Vec<Entry> {
        for entry in &mut entries {
            if entry.manager.api_version == self.api_version
                && let std::borrow::Cow::Owned(set) = reconcile(entry.set(), self.root())
            {
                entry.own(set);
            }
        }
        entries
    }

    /// The entry of a manager, made if there is none.
    fn entry<'e>(&self, entries: &'e mut Vec<Entry>, manager: Manager) -> &'e mut Entry {
        let at = entries
            .iter()
            .position(|e| e.manager.is(&manager))
            .unwrap_or_else(|| {
                entries.push(Entry::new(manager.clone(), None, Set::default()));
                entries.len() - 1
            });
        entries[at].manager.api_version = manager.api_version;
        &mut entries[at]
    }

    /// Takes changed and removed fields from all entries but `except`; entries that end up empty or speak of a
    /// version that is gone go. Returns what was taken because it was changed.
    fn take_from_others(
        &self,
        entries: &mut Vec<Entry>,
        mut compared: Versions<'_, '_>,
        except: Option<&Manager>,
    ) -> Result<Vec<(Manager, Set)>, String> {
        let mut taken = Vec::new();
        let mut kept = Vec::with_capacity(entries.len() + 1);
        for mut entry in std::mem::take(entries) {
            if except.is_some_and(|m| m.is(&entry.manager)) {
                if !entry.set().is_empty() {
                    kept.push(entry);
                }
                continue;
            }
            let Some(comparison) = compared.at(&entry.manager.api_version)? else {
                continue;
            };
            let changed = comparison.changed_of(entry.set());
            if !changed.is_empty() {
                entry.lose(&changed);
                taken.push((entry.manager.clone(), changed));
            }
            entry.lose(&comparison.removed);
            if !entry.set().is_empty() {
                kept.push(entry);
            }
        }
        *entries = kept;
        Ok(taken)
    }

    /// Applies a configuration to an object, or makes one of it.
    ///
    /// # Errors
    /// 400 for a configuration of another kind, 409 with all conflicts unless forced, 500 for one that does not
    /// fit the schema: codes and words are upstream's.
    pub fn apply(
        &self,
        live: Option<&Value>,
        config: &Value,
        manager: &str,
        force: bool,
    ) -> Result<Value, Box<Status>> {
        self.check_type(config)?;
        let outcome = match self.apply_once(live, config, manager, force) {
            Err(Refused::Conflicts(conflicts)) if manager == last_applied::MANAGER => {
                let allowed = live.and_then(|l| last_applied::owned(self, l));
                match allowed {
                    None => Err(Refused::Conflicts(conflicts)),
                    Some(allowed) => {
                        let left = without(conflicts, &allowed);
                        if left.is_empty() {
                            self.apply_once(live, config, manager, true)
                        } else {
                            Err(Refused::Conflicts(left))
                        }
                    }
                }
            }
            other => other,
        };
        let mut applied = outcome.map_err(|refused| match refused {
            Refused::Status(status) => status,
            Refused::Conflicts(conflicts) => Box::new(conflict_status(&conflicts)),
        })?;
        put_managed(&mut applied.object, applied.managed);
        if manager == last_applied::MANAGER {
            last_applied::refresh(&mut applied.object, config);
        }
        Ok(applied.object)
    }

    fn check_type(&self, config: &Value) -> Result<(), Box<Status>> {
        let text = |field: &str| {
            config
                .get(field)
                .and_then(Value::as_str)
                .unwrap_or_default()
        };
        if text("apiVersion") != self.api_version || text("kind") != self.kind {
            let (group, version) = meta::split_api_version(text("apiVersion"));
            return Err(Box::new(Status::bad_request(format!(
                "invalid object type: {group}/{version}, Kind={}",
                text("kind")
            ))));
        }
        if meta::get(config, MANAGED_FIELDS).is_some_and(|m| !m.is_null()) {
            let why = "metadata.managedFields must be nil";
            return Err(Box::new(Status::bad_request(why)));
        }
        Ok(())
    }

    fn apply_once(
        &self,
        live: Option<&Value>,
        config: &Value,
        manager: &str,
        force: bool,
    ) -> Result<Applied, Refused> {
        let before = live.and_then(|l| meta::get(l, MANAGED_FIELDS));
        let mut entries = managers::decode(before)
            .map_err(|e| format!("failed to decode managed fields: {e}"))?;
        if let (true, Some(live)) = (entries.is_empty(), live) {
            entries = self.before_first_apply(live)?;
        }
        if let Some(why) = validate(config, self.root()) {
            let (group, version) = meta::split_api_version(self.api_version);
            let what = format!(
                "{}/{}; {group}/{version}, Kind={}",
                meta::namespace(config),
                meta::name(config),
                self.kind
            );
            return Err(format!("failed to create typed patch object ({what}): {why}").into());
        }
        let entries = self.reconciled(entries);
        let old = live.unwrap_or(&EMPTY_STRUCT);
        let (new, entries) = self.merged(old, config, entries, manager, force)?;
        let unchanged = live.is_some() && new == *old;
        let mut entries = entries;
        let me = self.manager(manager, true);
        if !unchanged && let Some(own) = entries.iter_mut().find(|e| e.manager.is(&me)) {
            own.time = self.now();
        }
        Ok(Applied {
            object: new,
            managed: managers::encode(entries),
        })
    }

    /// One entry for all there is, since nobody knows who set it.
    fn before_first_apply(&self, live: &Value) -> Result<Vec<Entry>, String> {
        let set = self
            .filtered(compare(&EMPTY_STRUCT, live, self.root())?)
            .into_changed();
        if set.is_empty() {
            return Ok(Vec::new());
        }
        let manager = self.manager(BEFORE_FIRST_APPLY, false);
        Ok(vec![Entry::new(manager, self.now(), set)])
    }

    /// The merged object and its owners.
    fn merged(
        &self,
        live: &Value,
        config: &Value,
        mut entries: Vec<Entry>,
        manager: &str,
        force: bool,
    ) -> Result<(Value, Vec<Entry>), Refused> {
        let me = self.manager(manager, true);
        let version = entries
            .iter()
            .find(|e| e.manager.is(&me))
            .map(|e| e.manager.api_version.clone());
        let mut set = self.reset.filter(field_set(config, self.root()));
        // Nobody owns the name, but who applies it keeps the metadata that it is in.
        let kept = set.intersection(stripped());
        set.subtract(&kept);
        let own = self.entry(&mut entries, me.clone());
        let last = own.own(set);
        let mut new = live.clone();
        merge(&mut new, config, self.root());
        if let (Some(last), Some(version)) = (last, version) {
            new = self.pruned(new, (&last, &version), &entries, (&me, &kept))?;
        }
        let own = self.filtered(compare(live, &new, self.root())?);
        let compared = Versions {
            context: self,
            live,
            new: &new,
            own: &own,
            others: Vec::new(),
        };
        let taken = self.take_from_others(&mut entries, compared, Some(&me))?;
        if !force && !taken.is_empty() {
            return Err(Refused::Conflicts(taken));
        }
        entries.retain(|e| !e.set().is_empty());
        Ok((new, entries))
    }

    /// `merged` without what this manager applied last time, does not apply now, and nobody else owns.
    fn pruned(
        &self,
        merged: Value,
        (last, version): (&Set, &str),
        entries: &[Entry],
        (me, kept): (&Manager, &Set),
    ) -> Result<Value, String> {
        if version == self.api_version
            && let Some(own) = entries.iter().find(|e| e.manager.is(me))
            && last.difference(own.set()).is_empty()
        {
            return Ok(merged);
        }
        let Some(merged_then) = self.converted(&merged, version) else {
            return Ok(merged);
        };
        let (then, ty) = (merged_then.value(), merged_then.ty());
        let last_named = with_declared_parents(last, ty);
        let mut pruned = remove(then, &last_named, ty);
        let mut versions: Vec<&str> = vec![version];
        for entry in entries {
            if !versions.contains(&entry.manager.api_version.as_str()) {
                versions.push(&entry.manager.api_version);
            }
        }
        let mut at = version;
        for other in versions {
            let owned = entries
                .iter()
                .filter(|e| e.manager.api_version == other)
                .fold(Set::default(), |all, e| all.union(e.set()));
            let owned = if other == self.api_version {
                owned.union(kept)
            } else {
                owned
            };
            let (Some(whole), Some(rest)) = (
                self.converted_from(then, version, other),
                self.converted_from(&pruned, at, other),
            ) else {
                continue;
            };
            let back = self.with_owned(whole.value(), rest.value(), &owned, whole.ty());
            pruned = back;
            at = other;
        }
        let Some(pruned_then) = self.converted_from(&pruned, at, version) else {
            return Ok(merged);
        };
        // Only what this manager itself had applied goes.
        let gone = named(then, ty)
            .difference(&named(pruned_then.value(), ty))
            .intersection(&last_named);
        let result = remove(then, &gone, ty);
        Ok(
            match self.converted_from(&result, version, self.api_version) {
                Some(back) => back.into_value(),
                None => merged,
            },
        )
    }

    /// `whole` without what neither `rest` has nor anyone owns.
    fn with_owned(&self, whole: &Value, rest: &Value, owned: &Set, ty: Ty<'_>) -> Value {
        let kept = named(rest, ty).union(&with_declared_parents(owned, ty));
        remove(whole, &named(whole, ty).difference(&kept), ty)
    }

    fn converted<'v>(&'v self, value: &'v Value, to: &str) -> Option<Versioned<'v>> {
        self.converted_from(value, self.api_version, to)
    }

    fn converted_from<'v>(
        &'v self,
        value: &'v Value,
        from: &str,
        to: &str,
    ) -> Option<Versioned<'v>> {
        if from == to {
            let schema = if to == self.api_version {
                self.schema
            } else {
                (self.versions)(&EMPTY_STRUCT, to)?.1
            };
            return Some(Versioned::Same(value, schema));
        }
        let (value, schema) = (self.versions)(value, to)?;
        Some(Versioned::Other(value, schema))
    }
}

fn named(value: &Value, ty: Ty<'_>) -> Set {
    with_declared_parents(&field_set(value, ty), ty)
}

/// An object in some version.
enum Versioned<'v> {
    Same(&'v Value, &'v Schema),
    Other(Value, &'v Schema),
}

impl<'v> Versioned<'v> {
    fn value(&self) -> &Value {
        match self {
            Self::Same(value, _) => value,
            Self::Other(value, _) => value,
        }
    }

    fn ty(&self) -> Ty<'v> {
        match self {
            Self::Same(_, schema) | Self::Other(_, schema) => Ty::Object(schema),
        }
    }

    fn into_value(self) -> Value {
        match self {
            Self::Same(value, _) => value.clone(),
            Self::Other(value, _) => value,
        }
    }
}

/// What a write changed, in each version that entries speak of.
struct Versions<'a, 'c> {
    context: &'a Context<'c>,
    live: &'a Value,
    new: &'a Value,
    own: &'a Comparison,
    others: Vec<(String, Option<Comparison>)>,
}

impl Versions<'_, '_> {
    /// The comparison in a version; `None` if there is no such version.
    fn at(&mut self, version: &str) -> Result<Option<&Comparison>, String> {
        if version == self.context.api_version {
            return Ok(Some(self.own));
        }
        let at = match self.others.iter().position(|(v, _)| v == version) {
            Some(at) => at,
            None => {
                let converted = (
                    self.context.converted(self.live, version),
                    self.context.converted(self.new, version),
                );
                let comparison = match converted {
                    (Some(live), Some(new)) => {
                        let compared = compare(live.value(), new.value(), new.ty())?;
                        Some(self.context.filtered(compared))
                    }
                    _ => None,
                };
                self.others.push((version.to_owned(), comparison));
                self.others.len() - 1
            }
        };
        Ok(self.others[at].1.as_ref())
    }
}

fn put_managed(object: &mut Value, list: Option<Value>) {
    match list {
        Some(list) => meta::set(object, MANAGED_FIELDS, list),
        None => {
            meta::remove(object, MANAGED_FIELDS);
        }
    }
}

/// Conflicts about fields that are not allowed to be taken.
fn without(conflicts: Vec<(Manager, Set)>, allowed: &Set) -> Vec<(Manager, Set)> {
    conflicts
        .into_iter()
        .map(|(manager, set)| (manager, set.difference(allowed)))
        .filter(|(_, set)| !set.is_empty())
        .collect()
}

fn conflict_status(conflicts: &[(Manager, Set)]) -> Status {
    let mut sorted: Vec<&(Manager, Set)> = conflicts.iter().collect();
    sorted.sort_by_cached_key(|(manager, _)| manager.identifier());
    let all: Vec<Conflict<'_>> = sorted
        .iter()
        .flat_map(|(manager, set)| {
            set.texts()
                .into_iter()
                .map(move |path| Conflict { manager, path })
        })
        .collect();
    let message = match all.as_slice() {
        [one] => format!(
            "Apply failed with 1 conflict: conflict with {}: {}",
            one.manager, one.path
        ),
        _ => {
            let lines: Vec<String> = sorted
                .iter()
                .flat_map(|(manager, set)| {
                    let paths = set.texts().into_iter().map(|path| format!("- {path}"));
                    std::iter::once(format!("conflicts with {manager}:")).chain(paths)
                })
                .collect();
            format!(
                "Apply failed with {} conflicts: {}",
                all.len(),
                lines.join("\n")
            )
        }
    };
    let mut status = Status::failure(409, "Conflict", message);
    status.details.get_or_insert_default().causes = all
        .into_iter()
        .map(|conflict| StatusCause {
            reason: "FieldManagerConflict".to_owned(),
            message: format!("conflict with {}", conflict.manager),
            field: conflict.path,
        })
        .collect();
    status
}
