//! The command as it is run, against a real server on the loopback.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::Path;
use std::process::{Command, Output};

use limosa_api::tls::{Ca, CaCertificate, Credential, Identity};
use limosa_server::{Config, Running};
use tempfile::TempDir;

struct Cluster {
    folder: TempDir,
    server: Running,
    ca_fingerprint: String,
    token: String,
}

impl Cluster {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = Config {
            listen: "127.0.0.1:0".parse().unwrap(),
            advertise: None,
            state_dir: folder.path().join("server"),
            ..Config::default()
        };
        let made = limosa_server::init(&config).await.unwrap();
        let server = limosa_server::start(config).await.unwrap();
        let token = std::fs::read_to_string(&made.admin_token_file).unwrap().trim().to_owned();
        Self { folder, server, ca_fingerprint: made.ca_fingerprint.to_string(), token }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Runs a command with the settings in its environment; later ones replace earlier ones.
    async fn run(&self, line: &str, settings: &[(&str, &str)]) -> Ran {
        let mut command = Command::new(env!("CARGO_BIN_EXE_limosa"));
        command.args(line.split_whitespace()).env_clear().env("HOME", self.path()).current_dir(self.path());
        command.envs(settings.iter().copied());
        Ran(tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap())
    }

    /// Runs a command as the administrator.
    async fn limosa(&self, line: &str) -> Ran {
        let address = self.server.address().to_string();
        let settings = [
            ("LIMOSA_SERVER", address.as_str()),
            ("LIMOSA_TOKEN", &self.token),
            ("LIMOSA_CA", &self.ca_fingerprint),
        ];
        self.run(line, &settings).await
    }
}

struct Ran(Output);

impl Ran {
    fn code(&self) -> Option<i32> {
        self.0.status.code()
    }

    fn out(&self) -> String {
        assert_eq!(self.code(), Some(0), "{}", self.err());
        String::from_utf8(self.0.stdout.clone()).unwrap()
    }

    fn err(&self) -> String {
        String::from_utf8(self.0.stderr.clone()).unwrap()
    }

    fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out()).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_failure_ends_with_its_code_and_says_what_to_do() {
    let cluster = Cluster::start().await;
    let spec = "name = \"web\"\ncpus = 1\nmemroy = \"1GiB\"\n";
    std::fs::write(cluster.path().join("web.toml"), spec).unwrap();
    for (line, code, words) in [
        ("vm show web", 11, "there is no VM"),
        ("vm show a/b", 10, "neither a name nor an id"),
        ("vm create -f web.toml", 10, "did you mean `memory`?"),
        ("vm create -f none.toml", 1, "none.toml"),
        ("task show x", 10, "a UUID is expected"),
        ("vm delete web", 10, "say so with `--yes`"),
        ("migrate web --to h1 --best", 2, "cannot be used with"),
        ("host join x", 10, "limosa token create"),
        ("agent --config none.toml", 1, "none.toml"),
    ] {
        let ran = cluster.limosa(line).await;
        assert_eq!(ran.code(), Some(code), "{line}: {}", ran.err());
        assert!(ran.err().replace('\n', " ").contains(words), "{line}: {}", ran.err());
        assert!(ran.err().starts_with("error: "), "{line}: {}", ran.err());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_get_failures_as_objects() {
    let cluster = Cluster::start().await;
    let ran = cluster.limosa("vm show web -o json").await;
    let told: serde_json::Value = serde_json::from_str(&ran.err()).unwrap();
    assert_eq!((told["code"].as_str(), told["exit_code"].as_u64()), (Some("not-found"), Some(11)));
    assert_eq!(ran.code(), Some(11));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_trusted_by_its_authority_and_a_user_by_its_token() {
    let cluster = Cluster::start().await;
    let address = cluster.server.address().to_string();
    let ca = Ca::load(&cluster.path().join("server/ca.pem")).unwrap();
    let ca_file = cluster.path().join("ca.pem");
    ca.certificate().store(&ca_file).unwrap();
    let ca_file = ca_file.to_str().unwrap();
    let another = Ca::create("another").unwrap().certificate().fingerprint().to_string();
    for (token, ca, code) in [
        (cluster.token.as_str(), ca_file, 0),
        (&cluster.token, &cluster.ca_fingerprint, 0),
        (&cluster.token, &another, 3),
        ("wrong", ca_file, 13),
        (&cluster.token, "none.pem", 1),
    ] {
        let settings = [("LIMOSA_SERVER", address.as_str()), ("LIMOSA_TOKEN", token), ("LIMOSA_CA", ca)];
        let ran = cluster.run("vm list", &settings).await;
        assert_eq!(ran.code(), Some(code), "{}", ran.err());
        assert!(!ran.err().contains(&cluster.token), "the token is shown: {}", ran.err());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_login_remembers_is_enough_from_then_on() {
    let cluster = Cluster::start().await;
    assert_eq!(cluster.run("host list", &[]).await.code(), Some(10));
    cluster.limosa("login").await.out();
    let listed = cluster.run("host list -o json", &[]).await.json();
    assert_eq!(listed["items"], serde_json::json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_makes_a_host_of_this_machine_once() {
    let cluster = Cluster::start().await;
    // The server was told to listen at any port, and says so.
    let told = cluster.limosa("token create h1").await.out();
    let told = told.replace("127.0.0.1:0", &cluster.server.address().to_string());
    let token = told.split_whitespace().find(|word| word.starts_with("limosa-join/")).unwrap();
    let state_dir = cluster.path().join("agent");
    let settings =
        format!("name = \"h1\"\nlisten = \"127.0.0.1:7601\"\nstate_dir = \"{}\"\n", state_dir.display());
    std::fs::write(cluster.path().join("agent.toml"), &settings).unwrap();

    let join = format!("host join {token} --config agent.toml -o json");
    let joined = cluster.run(&join, &[]).await.json();
    let credential = Credential::load(&state_dir.join(limosa_agent::CREDENTIAL)).unwrap();
    assert_eq!(credential.identity(), Identity::Host(joined["host"].as_str().unwrap().parse().unwrap()));
    let ca = CaCertificate::load(&state_dir.join(limosa_agent::CA)).unwrap();
    assert_eq!(ca.fingerprint().to_string(), cluster.ca_fingerprint);
    let completed = limosa_agent::Config::read(&cluster.path().join("agent.toml")).unwrap();
    assert_eq!(completed.servers, [cluster.server.address()]);
    let hosts = cluster.limosa("host list").await.out();
    assert!(hosts.contains("h1    joined"), "{hosts}");

    assert_eq!(cluster.run(&join, &[]).await.code(), Some(10), "this machine is a host already");
    std::fs::rename(&state_dir, cluster.path().join("old")).unwrap();
    assert_eq!(cluster.run(&join, &[]).await.code(), Some(13), "the token is used up");
    assert!(!state_dir.join(limosa_agent::CREDENTIAL).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_has_the_state_and_no_secret() {
    let cluster = Cluster::start().await;
    let token = cluster.limosa("token create h1 -o json").await.json()["token"].as_str().unwrap().to_owned();
    cluster.limosa("report r.tar").await.out();
    let report = std::fs::read(cluster.path().join("r.tar")).unwrap();
    let holds = |text: &str| report.windows(text.len()).any(|part| part == text.as_bytes());
    assert!(holds("limosa-report/state.json") && holds("\"cluster\""));
    assert!(!holds(&cluster.token) && !holds(&token) && !holds("PRIVATE KEY"));
}
