//! Whoever may not, and whatever cannot be: each is refused with a problem that names the object and the remedy.

mod common;

use std::time::Duration;

use common::{Cluster, name, refused, spec};
use hyper::Method;
use limosa_api::client::{CallError, HttpClient};
use limosa_api::rest::{CreateToken, CreateVm, JoinToken, List, Task, Vm};
use limosa_api::tls::{Ca, Identity, client_config};
use limosa_model::{FailureKind, Millis};
use limosa_server::{Config, ServerError};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn a_user_without_the_token_gets_nothing_but_the_description() {
    let cluster = Cluster::empty().await;
    let tls = client_config(None, &cluster.ca, Identity::Server).unwrap();
    let stranger = HttpClient::new(cluster.address().to_string(), tls.clone());
    let guesser = HttpClient::new(cluster.address().to_string(), tls).with_token(&"0".repeat(64)).unwrap();
    for client in [&stranger, &guesser] {
        let problem =
            refused(client.call::<Value>(Method::GET, "/v1/vms", None::<&()>, LIMIT).await).unwrap_err();
        assert_eq!((problem.status, problem.code), (401, FailureKind::Denied));
        assert!(problem.remedy.contains("Authorization"));
    }
    let described: Value =
        refused(stranger.call(Method::GET, "/v1/openapi.json", None::<&()>, LIMIT).await).unwrap();
    assert_eq!(described["info"]["title"], "Limosa");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_described_path_is_there_and_every_other_is_a_problem() {
    let cluster = Cluster::empty().await;
    let described: Value = cluster.get("/v1/openapi.json").await.unwrap();
    for (path, methods) in described["paths"].as_object().unwrap() {
        let path = path.replace(['{', '}'], "x");
        for method in methods.as_object().unwrap().keys() {
            let method: Method = method.to_uppercase().parse().unwrap();
            let answer = cluster.user.call::<Value>(method.clone(), &path, None::<&()>, LIMIT).await;
            if let Err(CallError::Refused(problem)) = answer {
                assert!(problem.status != 405, "{method} {path}: {problem}");
                assert!(!problem.detail.starts_with("there is no path"), "{method} {path}: {problem}");
            }
        }
    }
    assert_eq!(cluster.get::<Value>("/v1/nothing").await.unwrap_err().status, 404);
    assert_eq!(cluster.delete::<Value>("/v1/vms").await.unwrap_err().status, 405);
    assert_eq!(cluster.get::<Value>("/v1/events?form=1").await.unwrap_err().code, FailureKind::Invalid);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_token_is_for_one_host_once() {
    let cluster = Cluster::with_hosts(&["a"]).await;
    let token = cluster.token_for("b").await;
    let problem = cluster.join("c", &token.token).await.unwrap_err();
    assert!(problem.detail.contains("for host b, not for c"), "{problem}");
    cluster.join("b", &token.token).await.unwrap();
    let problem = cluster.join("b", &token.token).await.unwrap_err();
    assert!(problem.code == FailureKind::Denied && problem.detail.contains("it has been used"), "{problem}");
    assert!(cluster.join("b", "rubbish").await.is_err());
    let again = CreateToken { host: name("a"), valid_for_ms: Millis::new(1000) };
    let problem = cluster.post::<JoinToken>("/v1/tokens", &again).await.unwrap_err();
    assert!(problem.status == 409 && problem.detail.contains("host a already"), "{problem}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_token_is_refused_with_its_time() {
    let cluster = Cluster::empty().await;
    let ask = CreateToken { host: name("a"), valid_for_ms: Millis::new(1) };
    let token: JoinToken = cluster.post("/v1/tokens", &ask).await.unwrap();
    while jiff::Timestamp::now() <= token.expires {
        std::hint::spin_loop();
    }
    let problem = cluster.join("a", &token.token).await.unwrap_err();
    assert!(problem.detail.contains(&token.expires.to_string()), "{problem}");
    assert!(problem.remedy.contains("limosa token create a"), "{problem}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_of_another_cluster_is_not_let_in() {
    let cluster = Cluster::with_hosts(&["a"]).await;
    let other = Ca::create("other").unwrap();
    let host = cluster.agent("a").host;
    let forged = other.issue(Identity::Host(host), &[]).unwrap();
    let client = cluster.as_host(&forged);
    let answer = client.call::<Value>(Method::POST, "/agent/v1/reports", Some(&json!({})), LIMIT).await;
    assert!(matches!(answer, Err(CallError::Unreachable { .. })), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_speaks_for_itself_alone() {
    let cluster = Cluster::with_hosts(&["a", "b"]).await;
    let other = cluster.agent("b").host;
    let CallError::Refused(problem) =
        cluster.agent("a").report_as(|report| report.host = other).await.unwrap_err()
    else {
        panic!("it was not refused");
    };
    assert_eq!(problem.code, FailureKind::Denied);
    // A user's token opens no agent's path.
    let problem = cluster.post::<Value>("/agent/v1/facts", &json!({})).await.unwrap_err();
    assert!([FailureKind::Denied, FailureKind::Invalid].contains(&problem.code));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mac_in_use_names_the_other_vm() {
    let cluster = Cluster::with_hosts(&["a"]).await;
    let web = cluster.run("web", "a").await;
    let mut second = spec("db");
    second.nics[0].mac = web.spec.nics[0].mac;
    let ask = CreateVm { spec: second, start: false, host: None };
    let problem = cluster.post::<Task>("/v1/vms", &ask).await.unwrap_err();
    assert!(problem.status == 409 && problem.detail.contains("in use by VM web"), "{problem}");
    let ask = CreateVm { spec: spec("web"), start: false, host: None };
    let problem = cluster.post::<Task>("/v1/vms", &ask).await.unwrap_err();
    assert!(problem.detail.contains("there is a VM web already"), "{problem}");
    let vms: List<Vm> = cluster.get("/v1/vms").await.unwrap();
    assert_eq!(vms.items.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spec_that_names_what_is_not_there_is_refused() {
    let cluster = Cluster::with_hosts(&["a"]).await;
    let mut wrong = spec("web");
    wrong.disks[0].datastore = name("slow");
    let ask = CreateVm { spec: wrong, start: false, host: None };
    let problem = cluster.post::<Task>("/v1/vms", &ask).await.unwrap_err();
    assert!(problem.detail.contains("no datastore \"slow\""), "{problem}");
    let problem =
        cluster.post::<Task>("/v1/vms", &json!({"spec": {"name": "web", "cpu": 2}})).await.unwrap_err();
    assert!(problem.code == FailureKind::Invalid && problem.detail.contains("cpu"), "{problem}");
    for folder in ["relative", "/a/../b"] {
        let ask = json!({"name": "x", "kind": "shared", "path": folder});
        assert!(cluster.post::<Value>("/v1/datastores", &ask).await.unwrap_err().detail.contains(folder));
    }
    let problem = cluster.delete::<Value>("/v1/hosts/nobody").await.unwrap_err();
    assert_eq!(problem.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_state_directory_is_for_one_server_and_one_cluster() {
    let mut cluster = Cluster::empty().await;
    let second =
        limosa_server::start(Config { listen: "127.0.0.1:0".parse().unwrap(), ..cluster.config.clone() });
    assert!(matches!(second.await, Err(ServerError::InUse { .. })));
    cluster.stop_server().await;
    assert!(matches!(limosa_server::init(&cluster.config).await, Err(ServerError::Exists { .. })));
    let elsewhere = Config { state_dir: cluster.config.state_dir.join("other"), ..cluster.config.clone() };
    assert!(matches!(limosa_server::start(elsewhere).await, Err(ServerError::NotInitialised { .. })));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let blocked = Config { listen: taken.local_addr().unwrap(), ..cluster.config.clone() };
    assert!(matches!(limosa_server::start(blocked).await, Err(ServerError::Listen { .. })));
    cluster.start_server().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_support_bundle_has_no_secret_in_it() {
    let cluster = Cluster::with_hosts(&["a"]).await;
    let token = cluster.token_for("b").await;
    cluster.run("web", "a").await;
    let bundle: Value = cluster.get("/v1/support-bundle").await.unwrap();
    let text = bundle.to_string();
    assert!(text.contains("web"));
    for secret in [&cluster.token, &token.token, &"PRIVATE KEY".to_owned()] {
        assert!(!text.contains(secret.as_str()));
    }
}
