//! The API's description (OpenAPI 3.1), made of the types that it is about.

use axum::http::Method;
use limosa_api::Problem;
use limosa_api::http::Json;
use limosa_api::rest::{
    Cluster, ConfirmRestore, CreateDatastore, CreateNetwork, CreateToken, CreateVm, Datastore, DeclareLost,
    EvacuateHost, Event, Host, JoinToken, List, MigrateRequest, Migration, MigrationPlan, Network, ResolveVm,
    SetVm, StartVm, StopVm, Task, Vm,
};
use schemars::generate::{SchemaGenerator, SchemaSettings};
use schemars::{JsonSchema, Schema};
use serde_json::{Map, Value, json};

/// One operation: method, path, what it does, what is sent, what comes back.
pub(crate) struct Operation {
    pub(crate) method: Method,
    pub(crate) path: &'static str,
    summary: &'static str,
    body: Option<SchemaOf>,
    status: u16,
    answer: Option<SchemaOf>,
}

type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

fn of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

/// A task or, for a dry run, a plan.
fn task_or_plan(generator: &mut SchemaGenerator) -> Schema {
    let (task, plan) = (of::<Task>(generator), of::<MigrationPlan>(generator));
    schemars::json_schema!({ "anyOf": [task, plan] })
}

/// All operations of users.
pub(crate) fn operations() -> Vec<Operation> {
    let (get, post, patch, delete) = (Method::GET, Method::POST, Method::PATCH, Method::DELETE);
    let row = |method: &Method, path, summary, body, status, answer| Operation {
        method: method.clone(),
        path,
        summary,
        body,
        status,
        answer,
    };
    let some = |schema: SchemaOf| Some(schema);
    let task = some(of::<Task>);
    vec![
        row(&get, "/v1/cluster", "The cluster", None, 200, some(of::<Cluster>)),
        row(
            &post,
            "/v1/cluster/confirm-restore",
            "Confirm a restored state",
            some(of::<ConfirmRestore>),
            200,
            some(of::<Cluster>),
        ),
        row(
            &get,
            "/v1/support-bundle",
            "The state without secrets, for a bug report",
            None,
            200,
            some(of::<Value>),
        ),
        row(
            &post,
            "/v1/tokens",
            "Make a token with which one host joins",
            some(of::<CreateToken>),
            201,
            some(of::<JoinToken>),
        ),
        row(&get, "/v1/hosts", "All hosts", None, 200, some(of::<List<Host>>)),
        row(&get, "/v1/hosts/{host}", "One host", None, 200, some(of::<Host>)),
        row(&delete, "/v1/hosts/{host}", "Remove an empty host", None, 204, None),
        row(&post, "/v1/hosts/{host}/cordon", "Let a host take no more VMs", None, 200, some(of::<Host>)),
        row(&post, "/v1/hosts/{host}/uncordon", "Let a host take VMs again", None, 200, some(of::<Host>)),
        row(&post, "/v1/hosts/{host}/evacuate", "Empty a host", some(of::<EvacuateHost>), 202, task),
        row(
            &post,
            "/v1/hosts/{host}/declare-lost",
            "Declare a host gone for good",
            some(of::<DeclareLost>),
            200,
            some(of::<Host>),
        ),
        row(
            &post,
            "/v1/hosts/{host}/readmit",
            "Readmit a lost or quarantined host",
            None,
            200,
            some(of::<Host>),
        ),
        row(&get, "/v1/datastores", "All datastores", None, 200, some(of::<List<Datastore>>)),
        row(
            &post,
            "/v1/datastores",
            "Add a datastore",
            some(of::<CreateDatastore>),
            201,
            some(of::<Datastore>),
        ),
        row(&get, "/v1/datastores/{datastore}", "One datastore", None, 200, some(of::<Datastore>)),
        row(&delete, "/v1/datastores/{datastore}", "Remove an unused datastore", None, 204, None),
        row(&get, "/v1/networks", "All networks", None, 200, some(of::<List<Network>>)),
        row(&post, "/v1/networks", "Add a network", some(of::<CreateNetwork>), 201, some(of::<Network>)),
        row(&get, "/v1/networks/{network}", "One network", None, 200, some(of::<Network>)),
        row(&delete, "/v1/networks/{network}", "Remove an unused network", None, 204, None),
        row(&get, "/v1/vms", "All VMs", None, 200, some(of::<List<Vm>>)),
        row(&post, "/v1/vms", "Make a VM", some(of::<CreateVm>), 202, task),
        row(&get, "/v1/vms/{vm}", "One VM", None, 200, some(of::<Vm>)),
        row(&patch, "/v1/vms/{vm}", "Change a VM", some(of::<SetVm>), 200, some(of::<Vm>)),
        row(&delete, "/v1/vms/{vm}", "Remove a stopped VM with its disks", None, 202, task),
        row(&post, "/v1/vms/{vm}/start", "Start a VM", some(of::<StartVm>), 202, task),
        row(&post, "/v1/vms/{vm}/stop", "Stop a VM", some(of::<StopVm>), 202, task),
        row(&post, "/v1/vms/{vm}/kill", "End a VM at once", None, 202, task),
        row(&post, "/v1/vms/{vm}/reboot", "Restart a VM's guest", some(of::<StopVm>), 202, task),
        row(&post, "/v1/vms/{vm}/pause", "Stop a VM's CPUs", None, 202, task),
        row(&post, "/v1/vms/{vm}/resume", "Let a VM's CPUs go on", None, 202, task),
        row(
            &post,
            "/v1/vms/{vm}/migrate",
            "Move a VM while it runs",
            some(of::<MigrateRequest>),
            202,
            some(task_or_plan),
        ),
        row(
            &post,
            "/v1/vms/{vm}/resolve",
            "Say that a VM's host is gone for good",
            some(of::<ResolveVm>),
            200,
            some(of::<Vm>),
        ),
        row(
            &get,
            "/v1/vms/{vm}/console/{kind}",
            "A console's bytes, by upgrade to `limosa-console`",
            None,
            101,
            None,
        ),
        row(&get, "/v1/migrations", "All migrations", None, 200, some(of::<List<Migration>>)),
        row(&get, "/v1/migrations/{migration}", "One migration", None, 200, some(of::<Migration>)),
        row(&get, "/v1/tasks", "All tasks", None, 200, some(of::<List<Task>>)),
        row(&get, "/v1/tasks/{task}", "One task; with `watch=true` as it goes on", None, 200, task),
        row(&post, "/v1/tasks/{task}/cancel", "Cancel a task", None, 200, task),
        row(
            &get,
            "/v1/events",
            "Events from a revision on; with `watch=true` as they come",
            None,
            200,
            some(of::<List<Event>>),
        ),
    ]
}

/// `GET /v1/openapi.json`.
pub(super) async fn show() -> Json<Value> {
    Json(document())
}

/// The whole description.
pub(crate) fn document() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut generator = settings.into_generator();
    let problem = of::<Problem>(&mut generator);
    let mut paths: Map<String, Value> = Map::new();
    for operation in operations() {
        let parameters: Vec<_> = operation
            .path
            .split('/')
            .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
            .map(|name| {
                json!({ "name": name, "in": "path", "required": true, "description": "Name or id.",
                    "schema": { "type": "string" } })
            })
            .chain(query(operation.path))
            .collect();
        let mut described = json!({
            "summary": operation.summary,
            "operationId": operation_id(&operation),
            "parameters": parameters,
            "responses": {
                "default": {
                    "description": "Refused: what happened, where the VM is, and what to do next.",
                    "content": { "application/problem+json": { "schema": problem } }
                }
            }
        });
        if let Some(body) = operation.body {
            let schema = body(&mut generator);
            described["requestBody"] = json!({ "content": { "application/json": { "schema": schema } } });
        }
        let mut answer = json!({ "description": "Done, or accepted." });
        if let Some(schema) = operation.answer {
            answer["content"] = json!({ "application/json": { "schema": schema(&mut generator) } });
        }
        described["responses"][operation.status.to_string()] = answer;
        let path = paths.entry(operation.path).or_insert_with(|| json!({}));
        path[operation.method.as_str().to_lowercase()] = described;
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Limosa",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Hosts, VMs that move while they run, and everything that happens to them.",
            "license": { "name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0" }
        },
        "security": [ { "token": [] } ],
        "paths": paths,
        "components": {
            "schemas": generator.take_definitions(true),
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer" } }
        }
    })
}

fn query(path: &str) -> Vec<Value> {
    let watch = json!({ "name": "watch", "in": "query", "description": "Go on, as server-sent events.",
        "schema": { "type": "boolean" } });
    let from = json!({ "name": "from", "in": "query", "description": "The first revision of interest.",
        "schema": { "type": "integer", "minimum": 0 } });
    match path {
        "/v1/tasks/{task}" => vec![watch],
        "/v1/events" => vec![watch, from],
        _ => Vec::new(),
    }
}

fn operation_id(operation: &Operation) -> String {
    let words = operation.path.trim_start_matches("/v1/").split(['/', '-']);
    let words: Vec<_> = words.map(|word| word.trim_matches(['{', '}'])).collect();
    format!("{}-{}", operation.method.as_str().to_lowercase(), words.join("-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reference_leads_to_a_schema() {
        let document = document();
        let text = document.to_string();
        let schemas = document["components"]["schemas"].as_object().unwrap();
        for reference in text.split("\"$ref\":\"").skip(1).filter_map(|rest| rest.split('"').next()) {
            let name = reference.strip_prefix("#/components/schemas/").unwrap();
            assert!(schemas.contains_key(name), "{reference} leads nowhere");
        }
        assert!(schemas.contains_key("VmSpec") && schemas.contains_key("Problem"));
    }

    #[test]
    fn every_operation_has_a_name_of_its_own() {
        let ids: std::collections::BTreeSet<_> = operations().iter().map(operation_id).collect();
        assert_eq!(ids.len(), operations().len());
    }
}
