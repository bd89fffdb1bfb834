//! Creating objects.

use api::{Status, meta};
use rand::Rng;
use serde_json::Value;
use store::{Commit, CommitError, Expect, Mutation};

use super::{Claims, Fail, Registry, Stored, WRITE_ATTEMPTS, Write, commit_failure, metadata};
use crate::admission::{Operation, Review};

/// How many names are tried for `generateName`.
const NAME_ATTEMPTS: usize = 8;

impl Write<'_> {
    /// What strategies are told about the request.
    pub(super) fn ctx(&self) -> kinds::Ctx<'_> {
        kinds::Ctx {
            kind: self.resource.stored(),
            subresource: self.subresource,
            now: self.now,
        }
    }

    /// The same for admission.
    pub(super) fn review<'a>(
        &'a self,
        registry: &'a Registry,
        operation: Operation,
        name: &'a str,
        old: Option<&'a Value>,
    ) -> Review<'a> {
        Review {
            registry,
            resource: self.resource,
            operation,
            subresource: self.subresource,
            namespace: self.namespace,
            name,
            user: self.user,
            old,
            dry_run: self.dry_run,
            now: self.now,
            warnings: self.warnings,
        }
    }

    pub(super) fn invalid(&self, name: &str, errors: &[api::FieldError]) -> Fail {
        Box::new(Status::invalid(
            &self.resource.kind.group,
            &self.resource.kind.kind,
            name,
            errors,
        ))
    }
}

impl Registry {
    /// Creates `object`, which is decoded and defaulted.
    ///
    /// # Errors
    /// A Status in upstream's words: invalid, already exists, forbidden by admission, …
    pub async fn create(&self, write: &Write<'_>, mut object: Value) -> Result<Stored, Fail> {
        check_for_create(write, &object)?;
        let prefix = meta::str_at(&object, &["metadata", "generateName"]).to_owned();
        if !meta::name(&object).is_empty() || prefix.is_empty() {
            return self.create_once(write, &mut object).await;
        }
        // Whether a name is free decides the commit.
        let mut attempt = 1;
        loop {
            let name = metadata::generated_name(&prefix, || (self.config.roll)());
            metadata::of(&mut object).insert("name".into(), name.into());
            match self.create_once(write, &mut object).await {
                Err(status) if is_taken(&status) && attempt < NAME_ATTEMPTS => attempt += 1,
                answer => return answer,
            }
        }
    }

    /// Creates it under the name it has. Where that is taken, the object can be created under another one.
    async fn create_once(&self, write: &Write<'_>, object: &mut Value) -> Result<Stored, Fail> {
        let resource = write.resource;
        metadata::stamp_new(object, write.namespace, &new_uid(), write.now);
        let name = meta::name(object).to_owned();
        let review = write.review(self, Operation::Create, &name, None);
        self.admission.mutate(&review, object).await?;
        let ctx = write.ctx();
        kinds::prepare_create(object, &ctx);
        let errors = kinds::validate_create(resource.stored(), object);
        if !errors.is_empty() {
            return Err(write.invalid(&name, &errors));
        }
        self.admission.validate(&review, object).await?;
        write
            .warnings
            .add(kinds::warnings(resource.stored(), object));
        self.commit_new(write, &name, object).await
    }

    async fn commit_new(
        &self,
        write: &Write<'_>,
        name: &str,
        object: &mut Value,
    ) -> Result<Stored, Fail> {
        let resource = write.resource;
        let key = resource.key(write.namespace, name);
        // Claiming fills in a service: every attempt starts from what was asked for.
        let asked = resource.is("", "services").then(|| object.clone());
        for _ in 0..WRITE_ATTEMPTS {
            if let Some(asked) = &asked {
                object.clone_from(asked);
            }
            let mut claims = Claims::default();
            self.claim_namespace(write, name, &mut claims).await?;
            self.claim(write, None, Some(&mut *object), &mut claims)
                .await?;
            let (value, bytes) = self.storable(resource, object).await?;
            let mut commit = Commit {
                expect: vec![(key.clone(), Expect::Absent)],
                mutations: vec![Mutation::Put {
                    key: key.clone(),
                    value: self.seal(resource, &key, value),
                }],
            };
            commit.expect.append(&mut claims.expect);
            commit.mutations.append(&mut claims.mutations);
            if write.dry_run {
                return match self.find(resource, write.namespace, name).await? {
                    Some(_) => Err(exists(write, object)),
                    None => Ok(Stored { bytes, revision: 0 }),
                };
            }
            match self.store.commit(commit).await {
                Ok(revision) => return Ok(Stored { bytes, revision }),
                Err(CommitError::Conflict { key: at, .. }) if at == key => {
                    let failure = exists(write, object);
                    if let Some(asked) = asked {
                        *object = asked;
                    }
                    return Err(failure);
                }
                // An address was taken or the namespace changed: look again, and say so if it is final.
                Err(CommitError::Conflict { .. }) => {}
                Err(error) => return Err(commit_failure(error)),
            }
        }
        Err(Box::new(Status::timeout("too many concurrent writes")))
    }

    /// Ties the commit to the namespace as it is now: nothing can be created in one that goes away meanwhile.
    async fn claim_namespace(
        &self,
        write: &Write<'_>,
        name: &str,
        claims: &mut Claims,
    ) -> Result<(), Fail> {
        if write.namespace.is_empty() {
            return Ok(());
        }
        let namespaces = self.resource("", "v1", "namespaces")?;
        let namespace = self.get(&namespaces, "", write.namespace).await?;
        crate::admission::namespace_lifecycle::check_alive(write, name, &namespace)?;
        claims.expect.push((
            namespaces.key("", write.namespace),
            Expect::ModRevision(namespace.revision),
        ));
        Ok(())
    }
}

fn check_for_create(write: &Write<'_>, object: &Value) -> Result<(), Fail> {
    check_namespace(write, object)?;
    if !matches!(
        meta::str_at(object, &["metadata", "resourceVersion"]),
        "" | "0"
    ) {
        return Err(Box::new(Status::failure(
            500,
            "",
            "resourceVersion should not be set on objects to be created",
        )));
    }
    Ok(())
}

/// That there is an object of the name, which the server may have chosen.
fn exists(write: &Write<'_>, object: &Value) -> Fail {
    let kind = &write.resource.kind;
    let name = meta::name(object);
    let chosen = !meta::str_at(object, &["metadata", "generateName"]).is_empty();
    Box::new(if chosen {
        Status::generated_name_exists(&kind.group, &kind.resource, name)
    } else {
        Status::already_exists(&kind.group, &kind.resource, name)
    })
}

fn is_taken(status: &Status) -> bool {
    status.reason == "AlreadyExists"
}

/// Refuses an object whose namespace is not the one of the request.
pub(super) fn check_namespace(write: &Write<'_>, object: &Value) -> Result<(), Fail> {
    let named = meta::namespace(object);
    let kind = &write.resource.kind;
    if named.is_empty() || named == write.namespace {
        return Ok(());
    }
    let why = if kind.namespaced {
        "the namespace of the provided object does not match the namespace sent on the request"
    } else {
        "namespace may not be set on a cluster-scoped object"
    };
    Err(Box::new(Status::bad_request(why)))
}

/// A random (version 4) UUID.
pub fn new_uid() -> String {
    let mut b: [u8; 16] = rand::rng().random();
    b[6] = (b[6] & 0x0f) | 0x40;
    b[8] = (b[8] & 0x3f) | 0x80;
    const HEX: &[u8; 16] = b"0123456789abcdef";
    // Written digit by digit: every answer carries one.
    let mut text = String::with_capacity(36);
    for (at, byte) in b.iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push(char::from(HEX[usize::from(byte >> 4)]));
        text.push(char::from(HEX[usize::from(byte & 15)]));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uids_are_random_uuids_of_version_4() {
        let uid = new_uid();
        let lengths: Vec<usize> = uid.split('-').map(str::len).collect();
        assert_eq!(lengths, [8, 4, 4, 4, 12]);
        assert!(
            uid.bytes()
                .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f' | b'-'))
        );
        assert_eq!(uid.as_bytes()[14], b'4');
        assert!(matches!(uid.as_bytes()[19], b'8' | b'9' | b'a' | b'b'));
        assert_ne!(uid, new_uid());
    }
}
