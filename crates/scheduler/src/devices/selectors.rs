//! Expressions that select devices, compiled once.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use cel::Program;
use k8s_openapi::api::resource::v1::DeviceSelector;

use super::model::Device;

/// Compiled expressions that are kept; a cluster uses a handful.
const KEPT_MAX: usize = 256;

type Compiled = Arc<Result<Program, String>>;

/// Compiled expressions by their text.
#[derive(Default)]
pub struct Selectors {
    programs: Mutex<HashMap<String, Compiled>>,
}

impl Selectors {
    fn compiled(&self, text: &str) -> Compiled {
        let mut programs = self.programs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = programs.get(text) {
            return Arc::clone(known);
        }
        if programs.len() >= KEPT_MAX {
            programs.clear();
        }
        let new = Arc::new(cel::device::compile(text));
        programs.insert(text.to_owned(), Arc::clone(&new));
        new
    }

    /// Whether a device is what all selectors want.
    ///
    /// # Errors
    /// What is wrong with which selector, or with the device.
    pub fn match_all(&self, all: &[DeviceSelector], device: &Device) -> Result<bool, String> {
        for (i, selector) in all.iter().enumerate() {
            let text = selector.cel.as_ref().map(|c| c.expression.as_str());
            let Some(text) = text else {
                return Err(format!(
                    "selector #{i}: CEL expression empty (unsupported selector type?)"
                ));
            };
            let program = self.compiled(text);
            let program = match &*program {
                Ok(program) => program,
                Err(e) => return Err(format!("selector #{i}: CEL compile error: {e}")),
            };
            let failed = |e: &str| {
                format!(
                    "selector #{i} on device {}: CEL runtime error: {e}",
                    device.id
                )
            };
            let value = device.value().map_err(failed)?;
            let holds = cel::device::holds(program, value).map_err(|e| failed(&e.to_string()))?;
            if !holds {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
