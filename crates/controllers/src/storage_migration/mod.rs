//! Writes the objects of a resource anew where somebody asks for it, so that all are stored as the server stores
//! objects now.
//!
//! ```text
//!  asked for ──> Running, if no other one of the resource is ──> each object patched with nothing
//!                                                                        │
//!     the definition forgets older versions  <──  Succeeded, or Failed  <┘
//! ```

mod plan;

use client::{Cache, Error, Queue, Reconcile, Requeue, Scope, write};
use futures::future::BoxFuture;
use k8s_openapi::{
    api::storagemigration::v1::StorageVersionMigration,
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    apimachinery::pkg::apis::meta::v1::{Condition as Plain, Time},
};
use kube::api::{ListParams, Patch, PatchParams};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    Context, Controller, catalogue,
    conditions::{self, Verdict},
};
use plan::{Act, FAILED, RUNNING, SUCCEEDED, has_succeeded, plan};

/// The entry of [`crate::ALL`].
pub const CONTROLLER: Controller = Controller {
    name: "storage-version-migrator-controller",
    run,
};

/// Condition of a definition whose objects are written anew.
const MIGRATING: &str = "StorageMigrating";
/// Objects that are asked for at once.
const PAGE: u32 = 500;

/// A page of the metadata of objects.
#[derive(Deserialize)]
struct Page {
    metadata: PageMeta,
    items: Vec<Item>,
}

#[derive(Deserialize)]
struct PageMeta {
    #[serde(default)]
    r#continue: String,
}

#[derive(Deserialize)]
struct Item {
    metadata: ItemMeta,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ItemMeta {
    name: String,
    #[serde(default)]
    namespace: String,
    uid: String,
    resource_version: String,
}

/// How a migration ended.
enum End {
    Well,
    Badly(String),
}

struct Migrator {
    context: Context,
    migrations: Cache<StorageVersionMigration>,
}

fn run(context: Context) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let migrations = context.caches.get::<StorageVersionMigration>(Scope::all());
        migrations.synced().await;
        let queue = Queue::default();
        let to = queue.clone();
        migrations.on_change(move |change| {
            let states = [&change.old, &change.new].into_iter().flatten();
            for state in states {
                if let Ok(migration) = state.decode::<StorageVersionMigration>() {
                    to.add(name_of(&migration));
                }
            }
        });
        let migrator = Migrator {
            context: context.clone(),
            migrations,
        };
        context.work(migrator, queue).await;
    })
}

/// The resource that a migration is about, as its definition would be named.
fn name_of(migration: &StorageVersionMigration) -> String {
    let of = migration.spec.as_ref().map(|s| &s.resource);
    of.map_or_else(String::new, |of| format!("{}.{}", of.resource, of.group))
}

fn conditions_of(migration: &StorageVersionMigration) -> Vec<Plain> {
    let status = migration.status.as_ref();
    status
        .and_then(|s| s.conditions.clone())
        .unwrap_or_default()
}

impl Reconcile for Migrator {
    type Key = String;

    fn name(&self) -> &'static str {
        CONTROLLER.name
    }

    async fn reconcile(&self, resource: &String) -> Result<Requeue, Error> {
        let all = self.migrations.list().into_iter();
        let all: Vec<_> = all.filter(|m| name_of(m) == *resource).collect();
        match plan(&all) {
            None => {}
            Some(Act::Start(migration)) => self.start(migration, resource).await?,
            Some(Act::Migrate(migration)) => self.migrate(migration, resource).await?,
            Some(Act::Finish(migration)) => self.finish(migration, resource).await?,
        }
        Ok(Requeue::OnChange)
    }
}

impl Migrator {
    async fn start(&self, migration: &StorageVersionMigration, of: &str) -> Result<(), Error> {
        let name = migration.metadata.name.as_deref().unwrap_or_default();
        let message = format!("Migration {name} is running");
        self.tell_definition(of, |definition| {
            let generation = definition.metadata.generation;
            json!({"conditions": [self.migrating("True", "MigrationRunning", &message, generation)]})
        })
        .await?;
        let running = Verdict {
            kind: RUNNING,
            status: "True",
            reason: "MigrationRunning",
            message: "The migration is running".into(),
        };
        self.say(migration, running).await
    }

    async fn finish(&self, migration: &StorageVersionMigration, of: &str) -> Result<(), Error> {
        let well = has_succeeded(migration);
        self.tell_definition(of, |definition| {
            let generation = definition.metadata.generation;
            let status = definition.status.as_ref();
            let marks = status.and_then(|s| s.conditions.as_deref()).unwrap_or_default();
            let mark = marks.iter().find(|c| c.type_ == MIGRATING);
            // A definition that has changed meanwhile may store in another version by now.
            let same = mark.is_some_and(|c| c.observed_generation == generation);
            let (reason, message) = match (well, same) {
                (true, true) => (
                    "MigrationSucceeded",
                    "The migration has succeeded and the stored versions have been updated",
                ),
                (true, false) => (
                    "MigrationSucceeded",
                    "The migration has succeeded but the stored versions have not been updated due to a generation mismatch",
                ),
                (false, _) => ("MigrationFailed", "The migration has failed"),
            };
            let mut status =
                json!({"conditions": [self.migrating("False", reason, message, generation)]});
            let stored = definition.spec.versions.iter().find(|v| v.storage);
            if let Some(stored) = stored.filter(|_| well && same) {
                status["storedVersions"] = json!([stored.name]);
            }
            status
        })
        .await?;
        let mut all = conditions_of(migration);
        conditions::remove(&mut all, RUNNING);
        self.write(migration, json!({"conditions": all})).await
    }

    async fn migrate(&self, migration: &StorageVersionMigration, of: &str) -> Result<(), Error> {
        let verdict = match self.rewrite(of).await? {
            End::Well => Verdict {
                kind: SUCCEEDED,
                status: "True",
                reason: "StorageVersionMigrationSucceeded",
                message: String::new(),
            },
            End::Badly(message) => Verdict {
                kind: FAILED,
                status: "True",
                reason: "StorageVersionMigrationFailed",
                message,
            },
        };
        self.say(migration, verdict).await
    }

    /// Writes into the status of the definition of a resource, if it has one.
    async fn tell_definition(
        &self,
        of: &str,
        status: impl Fn(&CustomResourceDefinition) -> Value + Send + Sync,
    ) -> Result<(), Error> {
        let api = write::cluster::<CustomResourceDefinition>(&self.context.client);
        let Some(definition) = write::tolerate_missing(api.get(of).await)? else {
            return Ok(());
        };
        let mut patch = json!({"apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition", "metadata": {"name": of}});
        patch["status"] = status(&definition);
        let params = PatchParams::apply(CONTROLLER.name).force();
        let written = api.patch_status(of, &params, &Patch::Apply(patch)).await;
        write::tolerate_missing(written)?;
        Ok(())
    }

    fn migrating(
        &self,
        status: &str,
        reason: &str,
        message: &str,
        generation: Option<i64>,
    ) -> Value {
        json!({"type": MIGRATING, "status": status, "reason": reason, "message": message,
            "lastTransitionTime": Time(self.context.now()), "observedGeneration": generation})
    }

    async fn say(&self, about: &StorageVersionMigration, verdict: Verdict) -> Result<(), Error> {
        let mut all = conditions_of(about);
        conditions::set(&mut all, verdict, self.context.now());
        self.write(about, json!({"conditions": all})).await
    }

    async fn write(&self, about: &StorageVersionMigration, status: Value) -> Result<(), Error> {
        let meta = &about.metadata;
        let api = write::cluster::<StorageVersionMigration>(&self.context.client);
        let body = json!({"status": status,
            "metadata": {"uid": meta.uid, "resourceVersion": meta.resource_version}});
        let name = meta.name.as_deref().unwrap_or_default();
        if let Some(written) = write::patch_status(&api, name, &body).await? {
            self.migrations
                .caught_up(write::revision_of(&written))
                .await?;
        }
        Ok(())
    }

    /// Patches each object with nothing. One that is changed, or made anew, meanwhile is stored as it should be.
    async fn rewrite(&self, of: &str) -> Result<End, Error> {
        let client = &self.context.client;
        let served = catalogue::discover(client).await?.served.into_iter();
        let mut served =
            served.filter(|s| format!("{}.{}", s.resource.plural, s.resource.group) == of);
        let Some(served) = served.next() else {
            return Ok(End::Badly("resource does not exist in discovery".into()));
        };
        let mut token = String::new();
        loop {
            let mut params = ListParams::default().limit(PAGE);
            params.continue_token = Some(token).filter(|t| !t.is_empty());
            let all = kube::core::Request::new(served.resource.path(""));
            let request = all
                .list_metadata(&params)
                .map_err(kube::Error::BuildRequest)?;
            let page: Page = client.request(request).await?;
            for Item { metadata: of } in page.items {
                let patch = json!({"apiVersion": served.resource.api_version(), "kind": served.kind,
                    "metadata": {"uid": of.uid, "resourceVersion": of.resource_version}});
                let near = kube::core::Request::new(served.resource.path(&of.namespace));
                let params = PatchParams::apply(CONTROLLER.name);
                let request = near.patch(&of.name, &params, &Patch::Apply(patch));
                let request = request.map_err(kube::Error::BuildRequest)?;
                match client.request::<Value>(request).await {
                    Ok(_) => {}
                    Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
                    Err(kube::Error::Api(status))
                        if (400..500).contains(&status.code) && status.code != 429 =>
                    {
                        return Ok(End::Badly("migration encountered unhandled error".into()));
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            if page.metadata.r#continue.is_empty() {
                return Ok(End::Well);
            }
            token = page.metadata.r#continue;
        }
    }
}
