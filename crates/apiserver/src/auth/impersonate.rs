//! `kubectl --as`: acting as another user, group or service account, when allowed to.

use std::sync::Arc;

use http::HeaderMap;

use super::{AUTHENTICATED, Attributes, UserInfo};

/// Why impersonation headers are not usable.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImpersonationError {
    /// Groups, uid or extra were asked for without a user.
    #[error("requested {0} without impersonating a user")]
    WithoutUser(String),
    /// A header is not text.
    #[error("impersonation header is not valid text")]
    NotText,
}

/// The user asked for by `headers`, with the permissions `requester` needs for it; `None` when
/// no impersonation is asked for.
///
/// # Errors
/// When the headers contradict themselves.
pub fn requested(
    headers: &HeaderMap,
    requester: &Arc<UserInfo>,
) -> Result<Option<(UserInfo, Vec<Attributes>)>, ImpersonationError> {
    let text = |value: &http::HeaderValue| {
        value
            .to_str()
            .map(str::to_owned)
            .map_err(|_| ImpersonationError::NotText)
    };
    let groups: Vec<String> = headers
        .get_all("impersonate-group")
        .iter()
        .map(text)
        .collect::<Result<_, _>>()?;
    let Some(name) = headers.get("impersonate-user").map(text).transpose()? else {
        return match groups.is_empty() {
            true => Ok(None),
            false => Err(ImpersonationError::WithoutUser(format!("{groups:?}"))),
        };
    };
    let ask = |resource: &str, namespace: &str, name: &str| Attributes {
        user: requester.clone(),
        verb: "impersonate".to_owned(),
        version: "v1".to_owned(),
        resource: resource.to_owned(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        ..Attributes::default()
    };
    let mut needed = Vec::new();
    let mut user = UserInfo {
        name: name.clone(),
        groups: groups.clone(),
        ..UserInfo::default()
    };
    match name
        .strip_prefix("system:serviceaccount:")
        .and_then(|rest| rest.split_once(':'))
    {
        Some((namespace, account)) => {
            needed.push(ask("serviceaccounts", namespace, account));
            if groups.is_empty() {
                user.groups = vec![
                    "system:serviceaccounts".to_owned(),
                    format!("system:serviceaccounts:{namespace}"),
                ];
            }
        }
        None => needed.push(ask("users", "", &name)),
    }
    needed.extend(groups.iter().map(|group| ask("groups", "", group)));
    if name != super::ANONYMOUS && !user.in_group(AUTHENTICATED) {
        user.groups.push(AUTHENTICATED.to_owned());
    }
    Ok(Some((user, needed)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(*name, value.parse().unwrap());
        }
        map
    }

    #[test]
    fn each_identity_taken_on_needs_its_own_permission() {
        let me = Arc::new(UserInfo::new("admin", &[]));
        let asked = headers(&[
            ("impersonate-user", "jane"),
            ("impersonate-group", "devs"),
            ("impersonate-group", "ops"),
        ]);
        let (user, needed) = requested(&asked, &me).unwrap().unwrap();
        assert_eq!(user.groups, ["devs", "ops", "system:authenticated"]);
        let resources: Vec<_> = needed.iter().map(|n| (&*n.resource, &*n.name)).collect();
        assert_eq!(
            resources,
            [("users", "jane"), ("groups", "devs"), ("groups", "ops")]
        );
    }

    #[test]
    fn groups_without_a_user_are_refused_and_nothing_asked_is_nothing() {
        let me = Arc::new(UserInfo::new("admin", &[]));
        assert!(requested(&headers(&[("impersonate-group", "devs")]), &me).is_err());
        assert_eq!(requested(&headers(&[]), &me).unwrap().map(|(u, _)| u), None);
    }

    #[test]
    fn a_service_account_brings_its_groups() {
        let me = Arc::new(UserInfo::new("admin", &[]));
        let asked = headers(&[("impersonate-user", "system:serviceaccount:dev:app")]);
        let (user, needed) = requested(&asked, &me).unwrap().unwrap();
        assert!(user.in_group("system:serviceaccounts:dev"));
        assert_eq!(
            (&*needed[0].resource, &*needed[0].namespace),
            ("serviceaccounts", "dev")
        );
    }
}
