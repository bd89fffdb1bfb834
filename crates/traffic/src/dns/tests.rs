//! The cluster's names, by tables: question and answer.

use std::net::IpAddr;

use client::Key;
use hickory_proto::op::{Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};

use super::*;

fn set(zone: &mut Zone, namespace: &str, name: &str, spec: Value, endpoints: Value, ports: Value) {
    let service: Service =
        serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap();
    let slice: EndpointSlice = serde_json::from_value(
        json!({"metadata": {"name": name}, "addressType": "IPv4", "endpoints": endpoints, "ports": ports}),
    )
    .unwrap();
    zone.set(&Key::new(namespace, name), Record::of(&service, &[slice]));
}

fn zone() -> Zone {
    let mut zone = Zone::default();
    let web_ports = json!([{"name": "http", "port": 80, "protocol": "TCP"}]);
    set(
        &mut zone,
        "default",
        "web",
        json!({"clusterIP": "10.43.0.7", "ports": [{"name": "HTTP", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}]}),
        json!([{"addresses": ["10.42.0.3"], "conditions": {"ready": true}}]),
        web_ports.clone(),
    );
    set(
        &mut zone,
        "db",
        "mysql",
        json!({"clusterIP": "None", "ports": [{"name": "sql", "port": 3306}]}),
        json!([
            {"addresses": ["10.42.0.5"], "hostname": "mysql-0", "conditions": {"ready": true}},
            {"addresses": ["10.42.0.6"], "hostname": "mysql-1", "conditions": {"ready": true}},
            {"addresses": ["10.42.0.8"], "conditions": {}},
            {"addresses": ["10.42.0.9"], "hostname": "mysql-2", "conditions": {"ready": false}}
        ]),
        json!([{"name": "sql", "port": 3306}]),
    );
    set(
        &mut zone,
        "db",
        "empty",
        json!({"clusterIP": "None", "ports": [{"name": "x", "port": 1}]}),
        json!([]),
        json!([]),
    );
    for (name, target) in [
        ("out", "db.example.org."),
        ("alias", "web.default.svc.cluster.local"),
        ("ring", "ring.db.svc.cluster.local"),
    ] {
        set(
            &mut zone,
            "db",
            name,
            json!({"type": "ExternalName", "externalName": target}),
            json!([]),
            json!([]),
        );
    }
    zone
}

fn ask(zone: &Zone, name: &str, kind: RecordType) -> Outcome {
    let mut request = Message::query();
    request.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    let ranges = [
        "10.43.0.0/16".parse().unwrap(),
        "10.42.0.0/16".parse().unwrap(),
    ];
    Domain::new("cluster.local", &ranges)
        .unwrap()
        .answer(&request, zone, 0)
}

/// The answer in short: data of each record, or why there is none.
fn short(outcome: Outcome) -> String {
    match outcome {
        Outcome::Forward => "forward".into(),
        Outcome::Follow(_, target) => format!("follow {target}"),
        Outcome::Answer(message) => {
            let data: Vec<_> = message.answers.iter().map(|r| r.data.to_string()).collect();
            let denied = message
                .authorities
                .iter()
                .any(|r| r.record_type() == RecordType::SOA);
            match (message.metadata.response_code, data.is_empty()) {
                (ResponseCode::NXDomain, true) if denied => "no such name".into(),
                (ResponseCode::NoError, true) if denied => "no data".into(),
                (ResponseCode::NoError, false) => data.join(", "),
                (code, _) => code.to_string(),
            }
        }
    }
}

#[test]
fn names_and_their_answers() {
    use RecordType::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
    let zone = zone();
    for (name, kind, want) in [
        ("web.default.svc.cluster.local.", A, "10.43.0.7"),
        ("WEB.Default.svc.Cluster.LOCAL.", A, "10.43.0.7"),
        ("web.default.svc.cluster.local.", AAAA, "no data"),
        ("web.db.svc.cluster.local.", A, "no such name"),
        ("web.svc.cluster.local.", A, "no such name"),
        (
            "_http._tcp.web.default.svc.cluster.local.",
            SRV,
            "0 100 80 web.default.svc.cluster.local.",
        ),
        (
            "_dns._udp.web.default.svc.cluster.local.",
            SRV,
            "0 100 53 web.default.svc.cluster.local.",
        ),
        (
            "_http._udp.web.default.svc.cluster.local.",
            SRV,
            "no such name",
        ),
        ("_tcp.web.default.svc.cluster.local.", SRV, "no data"),
        ("10-42-0-3.web.default.svc.cluster.local.", A, "10.42.0.3"),
        (
            "mysql.db.svc.cluster.local.",
            A,
            "10.42.0.5, 10.42.0.6, 10.42.0.8",
        ),
        ("mysql-1.mysql.db.svc.cluster.local.", A, "10.42.0.6"),
        ("mysql-2.mysql.db.svc.cluster.local.", A, "no such name"),
        ("10-42-0-8.mysql.db.svc.cluster.local.", A, "10.42.0.8"),
        (
            "_sql._tcp.mysql-0.mysql.db.svc.cluster.local.",
            SRV,
            "no such name",
        ),
        (
            "_sql._tcp.mysql.db.svc.cluster.local.",
            SRV,
            "0 33 3306 10-42-0-8.mysql.db.svc.cluster.local., 0 33 3306 mysql-0.mysql.db.svc.cluster.local., \
             0 33 3306 mysql-1.mysql.db.svc.cluster.local.",
        ),
        ("empty.db.svc.cluster.local.", A, "no data"),
        ("_x._tcp.empty.db.svc.cluster.local.", SRV, "no data"),
        ("out.db.svc.cluster.local.", A, "follow db.example.org."),
        ("out.db.svc.cluster.local.", CNAME, "db.example.org."),
        (
            "alias.db.svc.cluster.local.",
            A,
            "web.default.svc.cluster.local., 10.43.0.7",
        ),
        (
            "ring.db.svc.cluster.local.",
            A,
            "ring.db.svc.cluster.local.",
        ),
        ("10-42-7-9.default.pod.cluster.local.", A, "10.42.7.9"),
        ("10-42-7-9.default.pod.cluster.local.", AAAA, "no data"),
        ("10-42-7.default.pod.cluster.local.", A, "no such name"),
        ("dns-version.cluster.local.", TXT, "1.1.0"),
        ("cluster.local.", A, "no data"),
        ("cluster.local.", NS, "ns.dns.cluster.local."),
        ("svc.cluster.local.", A, "no data"),
        ("db.svc.cluster.local.", A, "no data"),
        ("none.svc.cluster.local.", A, "no such name"),
        ("example.org.default.svc.cluster.local.", A, "no such name"),
        ("example.org.cluster.local.", A, "no such name"),
        (
            "7.0.43.10.in-addr.arpa.",
            PTR,
            "web.default.svc.cluster.local.",
        ),
        (
            "5.0.42.10.in-addr.arpa.",
            PTR,
            "mysql-0.mysql.db.svc.cluster.local.",
        ),
        (
            "3.0.42.10.in-addr.arpa.",
            PTR,
            "10-42-0-3.web.default.svc.cluster.local.",
        ),
        ("9.9.42.10.in-addr.arpa.", PTR, "no such name"),
        ("8.8.8.8.in-addr.arpa.", PTR, "forward"),
        ("example.org.", A, "forward"),
        ("notcluster.local.", A, "forward"),
        ("local.", SOA, "forward"),
    ] {
        assert_eq!(short(ask(&zone, name, kind)), want, "{name} {kind}");
    }
}

#[test]
fn service_records_bring_the_addresses_along() {
    let Outcome::Answer(message) = ask(
        &zone(),
        "_sql._tcp.mysql.db.svc.cluster.local.",
        RecordType::SRV,
    ) else {
        panic!("not answered")
    };
    let extra: Vec<_> = message
        .additionals
        .iter()
        .map(|r| format!("{} {}", r.name, r.data))
        .collect();
    assert!(
        extra.contains(&"mysql-0.mysql.db.svc.cluster.local. 10.42.0.5".to_string()),
        "{extra:?}"
    );
    assert!(message.metadata.authoritative && message.answers.iter().all(|r| r.ttl == 5));
}

#[test]
fn changes_leave_nothing_behind() {
    let mut zone = zone();
    let names = |zone: &Zone, ip: &str| zone.names_of(ip.parse::<IpAddr>().unwrap());
    set(
        &mut zone,
        "db",
        "mysql",
        json!({"clusterIP": "None"}),
        json!([{"addresses": ["10.42.0.6"]}]),
        json!([]),
    );
    assert!(names(&zone, "10.42.0.5").is_empty());
    assert_eq!(names(&zone, "10.42.0.6"), ["10-42-0-6.mysql.db.svc"]);
    for name in ["mysql", "empty", "out", "alias", "ring"] {
        zone.set(&Key::new("db", name), None);
    }
    assert!(names(&zone, "10.42.0.6").is_empty());
    assert_eq!(
        short(ask(&zone, "db.svc.cluster.local.", RecordType::A)),
        "no such name"
    );
    zone.set(&Key::new("default", "never"), None);
}

#[test]
fn what_is_no_question_is_refused() {
    let zone = zone();
    let ranges = [];
    let domain = Domain::new("cluster.local", &ranges).unwrap();
    let code = |request: &Message| match domain.answer(request, &zone, 0) {
        Outcome::Answer(message) => message.metadata.response_code,
        other => panic!("{other:?}"),
    };
    assert_eq!(code(&Message::query()), ResponseCode::FormErr);
    let mut update = Message::query();
    update.add_query(Query::query(
        Name::from_ascii("cluster.local.").unwrap(),
        RecordType::SOA,
    ));
    update.metadata.op_code = OpCode::Update;
    assert_eq!(code(&update), ResponseCode::NotImp);
    assert!(Domain::new("not a name..", &ranges).is_err());
}
