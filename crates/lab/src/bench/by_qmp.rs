//! The same VM moved by QMP alone: what QEMU itself can do, with nothing of Limosa's in between.
//!
//! Its QEMUs are started by Limosa's own launch, so that nothing but the way of the stream differs: the same command
//! line, RAM in a memfd, the same user, sandbox and cgroup. A destination is told to run as soon as it has loaded
//! (`cont` while it waits for the migration), as QEMU without `-S` would.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use limosa_model::{Epoch, MigrationId};
use limosa_net::Net;
use limosa_qemu::commands::migration::{Capability, MigrationParameters, MigrationStatus};
use limosa_qemu::{Event, Events, EventsError, TimedEvent};
use limosa_vm::{LaunchPlan, Vm, launch, remove_runtime, tap_name};
use serde_json::json;

use super::by_agents::{MOVE_LIMIT, Moved, now_us};
use super::credentials;
use crate::error::{Error, Result};
use crate::lab::Lab;
use crate::names::{Network, Room};
use crate::runtime::NamespaceRuntime;

/// The port that destinations listen on, on the migration network.
const PORT: u16 = 4444;

/// How long a destination may take to run once the source has sent everything.
const RESUME_LIMIT: Duration = Duration::from_secs(60);

/// A VM under nobody, and where it is.
pub(super) struct ByQmp {
    hosts: Vec<Host>,
    plan: LaunchPlan,
    vm: Arc<Vm>,
    at: usize,
    ends: Arc<Ends>,
}

/// What both ends of every move are set up with.
struct Ends {
    parameters: MigrationParameters,
    /// The credentials of both, since all hosts of a lab have one file system.
    credentials: PathBuf,
}

/// Where QEMUs are started.
struct Host {
    runtime: NamespaceRuntime,
    net: Arc<Net>,
    folder: PathBuf,
    address: Ipv4Addr,
}

impl ByQmp {
    /// Starts a VM on the first host, by a plan whose places (runtime directory, taps) are filled in here.
    pub(super) fn start(lab: &Lab, plan: LaunchPlan, parameters: MigrationParameters) -> Result<Self> {
        let hosts = lab.hosts().map(|room| Host::new(lab, room)).collect::<Result<Vec<_>>>()?;
        let credentials = lab.directory().join("qemu-tls");
        credentials::write(&credentials, plan.user)?;
        let ends = Arc::new(Ends { parameters, credentials });
        let (vm, plan) = hosts[0].launch(plan, None)?;
        let started = vm.clone();
        hosts[0].runtime.call(async move { started.qmp().cont().await }).map_err(failed("let a VM go"))?;
        Ok(Self { hosts, plan, vm, at: 0, ends })
    }

    /// Makes it stand still.
    pub(super) fn pause(&self) -> Result<()> {
        let vm = self.vm.clone();
        self.hosts[self.at].runtime.call(async move { vm.qmp().stop().await }).map_err(failed("pause a VM"))
    }

    /// Lets it go on.
    pub(super) fn resume(&self) -> Result<()> {
        let vm = self.vm.clone();
        self.hosts[self.at].runtime.call(async move { vm.qmp().cont().await }).map_err(failed("resume a VM"))
    }

    /// The host that it is on.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// Moves it to another host, and returns when the QEMU that it has left is gone.
    pub(super) fn move_to(&mut self, to: usize, tls: bool) -> Result<Moved> {
        let ordered_us = now_us();
        let (from, host) = (&self.hosts[self.at], &self.hosts[to]);
        let (destination, plan) = host.launch(self.plan.clone(), Some(MigrationId::new()))?;
        let uri = format!("tcp:{}:{PORT}", host.address);
        let arrived = destination.qmp().subscribe();
        let (vm, ends) = (destination.clone(), self.ends.clone());
        let listening = {
            let uri = uri.clone();
            host.runtime.call(async move {
                prepare(&vm, &ends, tls.then_some("server")).await?;
                vm.qmp().cont().await?;
                vm.qmp().migrate_incoming(&uri).await
            })
        };
        listening.map_err(failed("prepare a destination"))?;

        let source = std::mem::replace(&mut self.vm, destination);
        let sent = {
            let (source, ends) = (source.clone(), self.ends.clone());
            from.runtime.call(async move {
                let sending = send(&source, &ends, tls, &uri, arrived);
                match tokio::time::timeout(MOVE_LIMIT, sending).await {
                    Ok(sent) => sent,
                    Err(_) => Err(Error::TimedOut { what: "a migration by QMP".into(), limit: MOVE_LIMIT }),
                }
            })
        };
        let Sent { streaming_us, stopped_us, continued_us } = sent?;
        from.end(source)?;
        (self.at, self.plan) = (to, plan);
        Ok(Moved { ordered_us, streaming_us, stopped_us, continued_us, phases: Vec::new() })
    }
}

impl Host {
    fn new(lab: &Lab, room: Room) -> Result<Self> {
        let runtime = NamespaceRuntime::start(&lab.namespace(room)?)?;
        let net = runtime.call(async { Net::connect() }).map_err(failed("reach a host's network"))?;
        let folder = lab.room_directory(room)?.join("by-qmp");
        std::fs::create_dir_all(&folder).map_err(Error::path("create", &folder))?;
        let address = Network::Migration.address(room).expect("hosts are on the migration network");
        Ok(Self { runtime, net: Arc::new(net), folder, address })
    }

    /// Starts the next QEMU of a plan, with its NICs' ports open.
    fn launch(&self, plan: LaunchPlan, migration: Option<MigrationId>) -> Result<(Arc<Vm>, LaunchPlan)> {
        let epoch = Epoch(plan.epoch.0 + 1);
        let mut plan =
            LaunchPlan { epoch, migration, runtime_dir: self.folder.join(epoch.0.to_string()), ..plan };
        for (number, nic) in (0_u8..).zip(&mut plan.nics) {
            nic.tap = tap_name(plan.vm, epoch, number);
        }
        let (net, next) = (self.net.clone(), plan.clone());
        let vm = self.runtime.call(async move {
            let vm = launch(next, &net).await?;
            vm.open_ports(&net).await?;
            Ok::<_, limosa_vm::VmError>(Arc::new(vm))
        });
        Ok((vm.map_err(failed("start a QEMU"))?, plan))
    }

    fn end(&self, vm: Arc<Vm>) -> Result<()> {
        let ended = self.runtime.call(async move {
            vm.kill().await?;
            remove_runtime(vm.runtime_dir())
        });
        ended.map_err(failed("end the QEMU that a VM has left"))
    }
}

/// Sets one end up. `tls` is the part that it plays in TLS, if there is TLS.
async fn prepare(vm: &Vm, ends: &Ends, tls: Option<&str>) -> std::result::Result<(), limosa_qemu::Error> {
    let qmp = vm.qmp();
    let capabilities = [Capability::Events, Capability::ReturnPath, Capability::Multifd];
    qmp.migrate_set_capabilities(&capabilities).await?;
    qmp.migrate_set_parameters(&ends.parameters).await?;
    // An empty name turns off what an earlier migration has left.
    let name = tls.map(|part| format!("tls-{part}")).unwrap_or_default();
    if let Some(part) = tls {
        let object = json!({
            "qom-type": "tls-creds-x509", "id": name, "endpoint": part, "verify-peer": true,
            "dir": ends.credentials,
        });
        qmp.execute::<_, serde_json::Value>("object-add", &object).await?;
    }
    let tls = json!({
        "tls-creds": name,
        "tls-hostname": if tls == Some("client") { credentials::DESTINATION } else { "" },
    });
    qmp.execute::<_, serde_json::Value>("migrate-set-parameters", &tls).await.map(drop)
}

struct Sent {
    streaming_us: u64,
    stopped_us: u64,
    continued_us: u64,
}

async fn send(source: &Vm, ends: &Ends, tls: bool, uri: &str, mut arrived: Events) -> Result<Sent> {
    let doing = "move a VM by QMP";
    prepare(source, ends, tls.then_some("client")).await.map_err(failed(doing))?;
    let mut events = source.qmp().subscribe();
    let streaming_us = now_us();
    source.qmp().migrate(uri).await.map_err(failed(doing))?;
    let mut stopped_us = None;
    loop {
        let TimedEvent { at, event } = next(&mut events).await.map_err(failed(doing))?;
        match event {
            Event::Stop => stopped_us = Some(micros(at.seconds, at.microseconds)),
            Event::Migration(MigrationStatus::Completed) => break,
            Event::Migration(MigrationStatus::Failed | MigrationStatus::Cancelled) => {
                let why = source.qmp().query_migrate().await.map_err(failed(doing))?.error_desc;
                return Err(Error::answer("QEMU", &why.unwrap_or_default(), "its migration failed"));
            }
            _ => {}
        }
    }
    let running = async {
        loop {
            let TimedEvent { at, event } = next(&mut arrived).await?;
            if event == Event::Resume {
                return Ok::<_, EventsError>(micros(at.seconds, at.microseconds));
            }
        }
    };
    let running = tokio::time::timeout(RESUME_LIMIT, running).await;
    let late = |_| Error::TimedOut { what: "the VM's run on the destination".into(), limit: RESUME_LIMIT };
    let continued_us = running.map_err(late)?.map_err(failed(doing))?;
    let stopped_us =
        stopped_us.ok_or_else(|| Error::answer("QEMU", "completed", "it never stopped the VM"))?;
    Ok(Sent { streaming_us, stopped_us, continued_us })
}

async fn next(events: &mut Events) -> std::result::Result<TimedEvent, EventsError> {
    loop {
        match events.next().await {
            Err(EventsError::Missed(_)) => {}
            other => return other,
        }
    }
}

fn micros(seconds: i64, microseconds: i64) -> u64 {
    seconds.unsigned_abs() * 1_000_000 + microseconds.unsigned_abs()
}

fn failed<E: std::error::Error + Send + Sync + 'static>(doing: &'static str) -> impl FnOnce(E) -> Error {
    move |error| Error::io(doing)(std::io::Error::other(error))
}
