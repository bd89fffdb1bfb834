//! Generates the CRI v1 messages, clients and servers from `facts/cri-v1.json`.
//!
//! The facts (message names, field numbers, types, services) are turned into a protobuf
//! `FileDescriptorSet`, which is exactly what `protoc` would have handed over, so that building
//! needs no `protoc`.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;

use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{
    DescriptorProto, EnumDescriptorProto, EnumValueDescriptorProto, FieldDescriptorProto,
    FileDescriptorProto, FileDescriptorSet, MessageOptions, MethodDescriptorProto,
    ServiceDescriptorProto,
};
use serde::Deserialize;

const FACTS: &str = "facts/cri-v1.json";
const PACKAGE: &str = "runtime.v1";

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    fields: Option<BTreeMap<String, Field>>,
    #[serde(default, rename = "enum")]
    values: Option<BTreeMap<String, i32>>,
    #[serde(default)]
    service: Option<BTreeMap<String, (String, String, String)>>,
}

#[derive(Deserialize)]
struct Field {
    n: i32,
    #[serde(default)]
    t: Option<String>,
    #[serde(default)]
    rep: u8,
    #[serde(default, rename = "enum")]
    is_enum: u8,
    #[serde(default)]
    map: Option<(String, String)>,
}

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={FACTS}");
    println!("cargo:rerun-if-changed=build.rs");
    let facts: BTreeMap<String, Entry> = serde_json::from_str(&std::fs::read_to_string(FACTS)?)?;
    let set = FileDescriptorSet {
        file: vec![file(&facts)?],
    };
    tonic_prost_build::configure()
        .build_transport(true)
        .emit_rerun_if_changed(false)
        .compile_fds(set)?;
    Ok(())
}

fn file(facts: &BTreeMap<String, Entry>) -> Result<FileDescriptorProto, Box<dyn Error>> {
    let mut file = FileDescriptorProto {
        name: Some("runtime/v1/api.proto".into()),
        package: Some(PACKAGE.into()),
        syntax: Some("proto3".into()),
        ..Default::default()
    };
    let mut nested: BTreeMap<&str, Vec<EnumDescriptorProto>> = BTreeMap::new();
    for (name, entry) in facts {
        let Some(values) = &entry.values else {
            continue;
        };
        match local(name).split_once('.') {
            Some((outer, inner)) => nested
                .entry(outer)
                .or_default()
                .push(enumeration(inner, values)),
            None => file.enum_type.push(enumeration(local(name), values)),
        }
    }
    for (name, entry) in facts {
        if let Some(fields) = &entry.fields {
            let mut message = message(local(name), fields)?;
            message.enum_type = nested.remove(local(name)).unwrap_or_default();
            file.message_type.push(message);
        }
        if let Some(methods) = &entry.service {
            file.service.push(service(local(name), methods));
        }
    }
    if let Some(name) = nested.keys().next() {
        return Err(format!("enum inside the unknown message {name}").into());
    }
    Ok(file)
}

fn local(name: &str) -> &str {
    name.strip_prefix(PACKAGE)
        .and_then(|rest| rest.strip_prefix('.'))
        .unwrap_or(name)
}

fn enumeration(name: &str, values: &BTreeMap<String, i32>) -> EnumDescriptorProto {
    let by_number: BTreeSet<(i32, &String)> = values.iter().map(|(k, n)| (*n, k)).collect();
    EnumDescriptorProto {
        name: Some(name.into()),
        value: by_number
            .into_iter()
            .map(|(number, name)| EnumValueDescriptorProto {
                name: Some(name.clone()),
                number: Some(number),
                options: None,
            })
            .collect(),
        ..Default::default()
    }
}

fn message(
    name: &str,
    fields: &BTreeMap<String, Field>,
) -> Result<DescriptorProto, Box<dyn Error>> {
    let mut message = DescriptorProto {
        name: Some(name.into()),
        ..Default::default()
    };
    let mut by_number: Vec<(&String, &Field)> = fields.iter().collect();
    by_number.sort_by_key(|(_, field)| field.n);
    for (field_name, field) in by_number {
        let (kind, type_name, label) = if let Some((key, value)) = &field.map {
            let entry = format!("{}Entry", camel(field_name));
            message.nested_type.push(map_entry(&entry, key, value)?);
            let type_name = format!(".{PACKAGE}.{name}.{entry}");
            (Type::Message, Some(type_name), Label::Repeated)
        } else {
            let declared = field.t.as_deref().ok_or("field without a type")?;
            let (kind, type_name) = field_type(declared, field.is_enum == 1)?;
            let label = if field.rep == 1 {
                Label::Repeated
            } else {
                Label::Optional
            };
            (kind, type_name, label)
        };
        message.field.push(FieldDescriptorProto {
            name: Some(field_name.clone()),
            number: Some(field.n),
            label: Some(label as i32),
            r#type: Some(kind as i32),
            type_name,
            ..Default::default()
        });
    }
    Ok(message)
}

fn map_entry(name: &str, key: &str, value: &str) -> Result<DescriptorProto, Box<dyn Error>> {
    let side = |name: &str, number, declared| -> Result<_, Box<dyn Error>> {
        let (kind, type_name) = field_type(declared, false)?;
        Ok(FieldDescriptorProto {
            name: Some(name.into()),
            number: Some(number),
            label: Some(Label::Optional as i32),
            r#type: Some(kind as i32),
            type_name,
            ..Default::default()
        })
    };
    Ok(DescriptorProto {
        name: Some(name.into()),
        field: vec![side("key", 1, key)?, side("value", 2, value)?],
        options: Some(MessageOptions {
            map_entry: Some(true),
            ..Default::default()
        }),
        ..Default::default()
    })
}

fn field_type(declared: &str, is_enum: bool) -> Result<(Type, Option<String>), Box<dyn Error>> {
    Ok(match declared {
        "string" => (Type::String, None),
        "bytes" => (Type::Bytes, None),
        "bool" => (Type::Bool, None),
        "double" => (Type::Double, None),
        "int32" => (Type::Int32, None),
        "int64" => (Type::Int64, None),
        "uint32" => (Type::Uint32, None),
        "uint64" => (Type::Uint64, None),
        other if other.starts_with(PACKAGE) => {
            let kind = if is_enum { Type::Enum } else { Type::Message };
            (kind, Some(format!(".{other}")))
        }
        other => return Err(format!("unknown field type {other}").into()),
    })
}

fn service(
    name: &str,
    methods: &BTreeMap<String, (String, String, String)>,
) -> ServiceDescriptorProto {
    ServiceDescriptorProto {
        name: Some(name.into()),
        method: methods
            .iter()
            .map(|(method, (input, output, mode))| MethodDescriptorProto {
                name: Some(method.clone()),
                input_type: Some(format!(".{input}")),
                output_type: Some(format!(".{output}")),
                server_streaming: Some(mode == "stream"),
                ..Default::default()
            })
            .collect(),
        options: None,
    }
}

/// The name protobuf gives to the entry message of a map field.
fn camel(name: &str) -> String {
    name.split('_')
        .map(|word| {
            let mut letters = word.chars();
            letters.next().map_or_else(String::new, |first| {
                first.to_ascii_uppercase().to_string() + letters.as_str()
            })
        })
        .collect()
}
