//! Which volumes are to be attached to a node, detached from it, and reported as attached. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};

/// After this long a volume is taken from a node that is not well, mounted or not.
pub const UNMOUNT_LIMIT: SignedDuration = SignedDuration::from_mins(6);

/// A volume that pods on the node mount.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// The persistent volume.
    pub volume: String,
    /// What its attachment to this node is called.
    pub attachment: String,
    /// What nodes call the volume.
    pub device: String,
    /// Whether it can be attached to one node only.
    pub exclusive: bool,
}

/// An attachment of a volume to the node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Attachment {
    /// Its name.
    pub name: String,
    /// What nodes call the volume; empty: the volume is gone.
    pub device: String,
    /// Whether the driver says that it is done.
    pub attached: bool,
    /// Whether it is being undone.
    pub deleting: bool,
}

/// What is seen of a node.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Whether there is such a node.
    pub exists: bool,
    /// Whether volumes are attached to it from here.
    pub managed: bool,
    /// Whether it is ready.
    pub healthy: bool,
    /// Whether somebody says that it is down for good.
    pub out_of_service: bool,
    /// What it has mounted.
    pub in_use: BTreeSet<String>,
    /// What its status reports as attached.
    pub reported: BTreeSet<String>,
    /// What its pods mount.
    pub wanted: Vec<Wanted>,
    /// What is attached, or on the way.
    pub attachments: Vec<Attachment>,
    /// Volumes that are attached to other nodes.
    pub elsewhere: BTreeSet<String>,
    /// Since when attachments have not been wanted, as far as is remembered.
    pub unwanted_since: BTreeMap<String, Timestamp>,
}

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Volumes to attach.
    pub attach: Vec<Wanted>,
    /// Volumes that would have to be in two places at once.
    pub blocked: Vec<Wanted>,
    /// Volumes that are attached as of now.
    pub succeeded: Vec<Wanted>,
    /// What is to be reported as attached, if that is something new. It is written before anything
    /// is detached, so that the node mounts nothing that goes away.
    pub report: Option<BTreeSet<String>>,
    /// Attachments to undo.
    pub detach: Vec<String>,
    /// Attachments that are not wanted, and since when.
    pub unwanted_since: BTreeMap<String, Timestamp>,
    /// When to look again without anything having happened.
    pub again: Option<Duration>,
}

/// Decides.
pub fn plan(seen: &Seen, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let mut report = BTreeSet::new();
    for one in &seen.attachments {
        if seen.wanted.iter().any(|w| w.attachment == one.name) {
            if one.attached && !one.deleting {
                report.insert(one.device.clone());
            }
            continue;
        }
        if one.deleting {
            continue;
        }
        let since = seen.unwanted_since.get(&one.name).copied().unwrap_or(now);
        plan.unwanted_since.insert(one.name.clone(), since);
        let stay = stay(seen, one, since, now);
        if stay == Stay::No {
            plan.detach.push(one.name.clone());
            continue;
        }
        if one.attached {
            report.insert(one.device.clone());
        }
        if let Stay::For(time) = stay {
            plan.again = Some(plan.again.map_or(time, |known| known.min(time)));
        }
    }
    for wanted in seen.wanted.iter().filter(|_| seen.exists && seen.managed) {
        let known = seen
            .attachments
            .iter()
            .find(|a| a.name == wanted.attachment);
        match known {
            Some(known) => {
                let new = known.attached && !known.deleting;
                if new && !seen.reported.contains(&wanted.device) {
                    plan.succeeded.push(wanted.clone());
                }
            }
            None if wanted.exclusive && seen.elsewhere.contains(&wanted.volume) => {
                plan.blocked.push(wanted.clone());
            }
            None => plan.attach.push(wanted.clone()),
        }
    }
    if seen.exists && seen.managed && report != seen.reported {
        plan.report = Some(report);
    }
    plan
}

/// How long an attachment that is not wanted has to stay.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Stay {
    No,
    /// The node is well: it unmounts, and says so.
    WhileMounted,
    For(Duration),
}

fn stay(seen: &Seen, attachment: &Attachment, since: Timestamp, now: Timestamp) -> Stay {
    // A node that is no longer said to exist may still run, and write.
    let mounted = !seen.exists || seen.in_use.contains(&attachment.device);
    if !mounted || seen.out_of_service {
        return Stay::No;
    }
    if seen.healthy {
        return Stay::WhileMounted;
    }
    let left = UNMOUNT_LIMIT - now.duration_since(since);
    match Duration::try_from(left) {
        Ok(left) if !left.is_zero() => Stay::For(left),
        _ => Stay::No,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(volume: &str, exclusive: bool) -> Wanted {
        Wanted {
            volume: volume.into(),
            attachment: format!("csi-{volume}"),
            device: format!("kubernetes.io/csi/d^{volume}"),
            exclusive,
        }
    }

    fn attachment(volume: &str, attached: bool, deleting: bool) -> Attachment {
        let Wanted {
            attachment, device, ..
        } = wanted(volume, true);
        Attachment {
            name: attachment,
            device,
            attached,
            deleting,
        }
    }

    fn seen() -> Seen {
        Seen {
            exists: true,
            managed: true,
            healthy: true,
            ..Seen::default()
        }
    }

    fn devices(volumes: &[&str]) -> BTreeSet<String> {
        volumes.iter().map(|v| wanted(v, true).device).collect()
    }

    fn at(minute: i64) -> Timestamp {
        Timestamp::from_second(minute * 60).unwrap()
    }

    #[test]
    fn what_is_wanted_is_attached_and_then_reported() {
        let mut seen = Seen {
            wanted: vec![wanted("a", true)],
            ..seen()
        };
        assert_eq!(plan(&seen, at(0)).attach, seen.wanted);
        seen.attachments = vec![attachment("a", false, false)];
        assert_eq!(plan(&seen, at(0)), Plan::default(), "on its way");
        seen.attachments = vec![attachment("a", true, false)];
        let done = plan(&seen, at(0));
        assert_eq!(done.report, Some(devices(&["a"])));
        assert_eq!(done.succeeded, seen.wanted);
        seen.reported = devices(&["a"]);
        assert_eq!(plan(&seen, at(0)), Plan::default());
        seen.attachments = vec![attachment("a", true, true)];
        assert_eq!(plan(&seen, at(0)).report, Some(devices(&[])), "it is going");
    }

    #[test]
    fn exclusive_volumes_are_attached_to_one_node() {
        let elsewhere = Seen {
            elsewhere: ["a".to_owned(), "b".to_owned()].into(),
            wanted: vec![wanted("a", true), wanted("b", false)],
            ..seen()
        };
        let plan = plan(&elsewhere, at(0));
        assert_eq!(plan.blocked, [wanted("a", true)]);
        assert_eq!(plan.attach, [wanted("b", false)]);
        let own_business = Seen {
            managed: false,
            ..elsewhere
        };
        assert_eq!(super::plan(&own_business, at(0)), Plan::default());
    }

    #[test]
    fn nothing_is_detached_while_it_is_mounted() {
        let idle = Seen {
            attachments: vec![attachment("a", true, false)],
            reported: devices(&["a"]),
            ..seen()
        };
        let name = || vec!["csi-a".to_owned()];
        let free = plan(&idle, at(0));
        assert_eq!((free.detach, free.report), (name(), Some(devices(&[]))));
        let mounted = Seen {
            in_use: devices(&["a"]),
            ..idle
        };
        let waits = plan(&mounted, at(0));
        assert!(waits.detach.is_empty() && waits.report.is_none());
        assert_eq!(waits.again, None, "the node will tell");
        let sick = plan(
            &Seen {
                healthy: false,
                ..mounted.clone()
            },
            at(0),
        );
        assert_eq!(sick.again, Some(Duration::from_secs(360)));
        let later = |change: fn(&mut Seen)| {
            let mut seen = mounted.clone();
            seen.unwanted_since = waits.unwanted_since.clone();
            change(&mut seen);
            [plan(&seen, at(5)).detach, plan(&seen, at(6)).detach]
        };
        let none: [Vec<String>; 2] = [vec![], vec![]];
        assert_eq!(later(|_| ()), none, "the node is well");
        assert_eq!(later(|s| s.healthy = false), [vec![], name()]);
        assert_eq!(later(|s| s.out_of_service = true), [name(), name()]);
        let gone = later(|s| (s.exists, s.healthy) = (false, false));
        assert_eq!(gone, [vec![], name()], "it may still run");
    }
}
