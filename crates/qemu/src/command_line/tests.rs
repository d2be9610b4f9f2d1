use std::os::unix::ffi::OsStrExt;

use super::*;
use crate::Error;

fn minimal() -> CommandLine {
    CommandLine {
        binary: "/usr/bin/qemu-system-x86_64".into(),
        identity: Identity { vm: "web1".into(), epoch: 7, migration: None },
        name: "web".into(),
        uuid: "0190f3c2-3c8e-7aaa-8e5f-4d2f9a1b0c3d".into(),
        machine: "pc-q35-10.0".into(),
        accelerator: Accelerator::Tcg,
        cpu: Cpu { model: "qemu64".into(), features: vec![] },
        vcpus: 1,
        memory: Memory { bytes: 256 << 20, memfd: 9 },
        qmp_socket: "/run/limosa/web1/qmp".into(),
        serial: None,
        vga: Vga::None,
        vnc_socket: None,
        rng: false,
        balloon: false,
        firmware: Firmware::SeaBios,
        kernel: None,
        disks: vec![],
        cdroms: vec![],
        nics: vec![],
        start: Start::Run,
        stay_after_shutdown: false,
        globals: vec![],
        extra: vec![],
    }
}

fn disk(index: u8, image: Image) -> Disk {
    Disk {
        index,
        image,
        bus: DiskBus::Virtio,
        direct: true,
        read_only: false,
        discard: true,
        on_write_error: OnIoError::Stop,
        on_read_error: OnIoError::Report,
        boot_index: Some(1),
        serial: None,
    }
}

fn image(source: FileSource, format: ImageFormat) -> Image {
    Image { source, format, backing: None }
}

fn nic(index: u8) -> Nic {
    Nic {
        index,
        model: NicModel::Virtio,
        mac: [0x52, 0x54, 0, 0x12, 0x34, 0x56],
        tap: 30,
        vhost: None,
        mtu: None,
        boot_index: None,
    }
}

/// The arguments, an option and its value on a line.
fn rendered(command_line: &CommandLine) -> String {
    let mut text = String::new();
    for argument in command_line.to_arguments().unwrap() {
        let argument = argument.into_string().unwrap();
        let is_option = argument.starts_with('-') && !text.is_empty();
        text.push_str(if is_option { "\n" } else { " " });
        text.push_str(&argument);
    }
    text.trim().to_owned()
}

#[track_caller]
fn refused(command_line: &CommandLine, what: &str) {
    match command_line.to_arguments() {
        Err(Error::Invalid { what: found, .. }) => assert_eq!(found, what),
        other => panic!("{what} was to be refused, but: {other:?}"),
    }
}

#[test]
fn a_minimal_vm() {
    let expected = r#"
/usr/bin/qemu-system-x86_64
-chardev null,id=limosa.web1.7
-nodefaults
-no-user-config
-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
-msg timestamp=on
-name guest=web,debug-threads=on
-uuid 0190f3c2-3c8e-7aaa-8e5f-4d2f9a1b0c3d
-machine pc-q35-10.0,memory-backend=ram0
-accel tcg,thread=multi
-cpu qemu64
-smp cpus=1,sockets=1,cores=1,threads=1,maxcpus=1
-m size=256M
-object {"qom-type":"memory-backend-file","id":"ram0","size":268435456,"share":true,"mem-path":"/proc/self/fd/9","prealloc":false}
-boot strict=on
-chardev socket,id=qmp,path=/run/limosa/web1/qmp,server=on,wait=off
-mon chardev=qmp,mode=control
-display none"#;
    assert_eq!(rendered(&minimal()), expected.trim());
}

#[test]
fn a_vm_with_everything() {
    let template = image(FileSource::Path("/templates/debian.raw".into()), ImageFormat::Raw);
    let system = Image {
        source: FileSource::Descriptor(20),
        format: ImageFormat::Qcow2,
        backing: Some(Box::new(template)),
    };
    let data = image(FileSource::Descriptor(21), ImageFormat::Raw);
    let command_line = CommandLine {
        identity: Identity { vm: "web1".into(), epoch: 8, migration: Some("m-3".into()) },
        name: "web, the first".into(),
        accelerator: Accelerator::Kvm,
        machine: "pc-i440fx-10.0".into(),
        cpu: Cpu {
            model: "Skylake-Server-v2".into(),
            features: vec![("hle".into(), false), ("pcid".into(), true)],
        },
        vcpus: 4,
        serial: Some(Serial { socket: "/run/a,b".into(), log: Some("/log/console".into()) }),
        vga: Vga::Std,
        vnc_socket: Some("/run/vnc".into()),
        rng: true,
        balloon: true,
        firmware: Firmware::Uefi {
            code: FileSource::Path("/usr/share/OVMF/OVMF_CODE_4M.fd".into()),
            vars: FileSource::Descriptor(24),
        },
        kernel: Some(Kernel {
            kernel: FileSource::Path("/boot/vmlinuz".into()),
            initrd: Some(FileSource::Descriptor(25)),
            append: "console=ttyS0 init=/a,b".into(),
        }),
        disks: vec![
            disk(0, system),
            Disk {
                bus: DiskBus::Scsi,
                direct: false,
                boot_index: None,
                serial: Some("s1".into()),
                ..disk(3, data)
            },
        ],
        cdroms: vec![
            Cdrom { index: 0, image: Some(FileSource::Descriptor(22)), boot_index: Some(2) },
            Cdrom { index: 1, image: None, boot_index: None },
        ],
        nics: vec![
            Nic { mtu: Some(1450), vhost: Some(31), ..nic(0) },
            Nic { model: NicModel::E1000e, tap: 32, boot_index: Some(3), ..nic(5) },
        ],
        start: Start::Incoming,
        stay_after_shutdown: true,
        globals: vec![Global {
            driver: "migration".into(),
            property: "send-configuration".into(),
            value: "off".into(),
        }],
        extra: vec!["-d".into(), "guest_errors".into()],
        ..minimal()
    };
    let expected = r#"
/usr/bin/qemu-system-x86_64
-chardev null,id=limosa.web1.8.m-3
-nodefaults
-no-user-config
-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
-msg timestamp=on
-name guest=web,, the first,debug-threads=on
-uuid 0190f3c2-3c8e-7aaa-8e5f-4d2f9a1b0c3d
-machine pc-i440fx-10.0,memory-backend=ram0,pflash0=firmware0,pflash1=firmware1
-accel kvm
-cpu Skylake-Server-v2,hle=off,pcid=on
-smp cpus=4,sockets=1,cores=4,threads=1,maxcpus=4
-m size=256M
-object {"qom-type":"memory-backend-file","id":"ram0","size":268435456,"share":true,"mem-path":"/proc/self/fd/9","prealloc":false}
-boot strict=on
-no-shutdown
-chardev socket,id=qmp,path=/run/limosa/web1/qmp,server=on,wait=off
-mon chardev=qmp,mode=control
-chardev socket,id=serial0,path=/run/a,,b,server=on,wait=off,logfile=/log/console,logappend=on
-device {"driver":"isa-serial","id":"console0","chardev":"serial0"}
-blockdev {"driver":"file","node-name":"firmware0-file","filename":"/usr/share/OVMF/OVMF_CODE_4M.fd","read-only":true,"discard":"ignore","cache":{"direct":false,"no-flush":false}}
-blockdev {"driver":"raw","node-name":"firmware0","file":"firmware0-file","read-only":true,"discard":"ignore","cache":{"direct":false,"no-flush":false}}
-add-fd set=11,fd=24
-blockdev {"driver":"file","node-name":"firmware1-file","filename":"/dev/fdset/11","read-only":false,"discard":"ignore","cache":{"direct":false,"no-flush":false}}
-blockdev {"driver":"raw","node-name":"firmware1","file":"firmware1-file","read-only":false,"discard":"ignore","cache":{"direct":false,"no-flush":false}}
-kernel /boot/vmlinuz
-initrd /proc/self/fd/25
-append console=ttyS0 init=/a,b
-device {"driver":"virtio-scsi-pci","id":"scsi0","bus":"pci.0","addr":"0x05"}
-add-fd set=100,fd=20
-blockdev {"driver":"file","node-name":"disk0-backing1-file","filename":"/templates/debian.raw","read-only":true,"discard":"ignore","cache":{"direct":true,"no-flush":false}}
-blockdev {"driver":"raw","node-name":"disk0-backing1","file":"disk0-backing1-file","read-only":true,"discard":"ignore","cache":{"direct":true,"no-flush":false}}
-blockdev {"driver":"file","node-name":"disk0-file","filename":"/dev/fdset/100","read-only":false,"discard":"unmap","cache":{"direct":true,"no-flush":false}}
-blockdev {"driver":"qcow2","node-name":"disk0","file":"disk0-file","read-only":false,"discard":"unmap","cache":{"direct":true,"no-flush":false},"backing":"disk0-backing1"}
-device {"driver":"virtio-blk-pci","id":"disk0","bus":"pci.0","addr":"0x10","drive":"disk0","werror":"stop","rerror":"report","bootindex":1}
-add-fd set=148,fd=21
-blockdev {"driver":"file","node-name":"disk3-file","filename":"/dev/fdset/148","read-only":false,"discard":"unmap","cache":{"direct":false,"no-flush":false}}
-blockdev {"driver":"raw","node-name":"disk3","file":"disk3-file","read-only":false,"discard":"unmap","cache":{"direct":false,"no-flush":false}}
-device {"driver":"scsi-hd","id":"disk3","bus":"scsi0.0","scsi-id":3,"lun":0,"drive":"disk3","werror":"stop","rerror":"report","serial":"s1"}
-add-fd set=20,fd=22
-blockdev {"driver":"file","node-name":"cdrom0-file","filename":"/dev/fdset/20","read-only":true,"discard":"ignore","cache":{"direct":false,"no-flush":false}}
-blockdev {"driver":"raw","node-name":"cdrom0","file":"cdrom0-file","read-only":true,"discard":"ignore","cache":{"direct":false,"no-flush":false}}
-device {"driver":"ide-cd","id":"cdrom0","bus":"ide.0","drive":"cdrom0","bootindex":2}
-device {"driver":"ide-cd","id":"cdrom1","bus":"ide.1"}
-netdev {"type":"tap","id":"net0","fd":"30","vhost":true,"vhostfd":"31"}
-device {"driver":"virtio-net-pci","id":"nic0","bus":"pci.0","addr":"0x08","netdev":"net0","mac":"52:54:00:12:34:56","romfile":"","host_mtu":1450}
-netdev {"type":"tap","id":"net5","fd":"32","vhost":false}
-device {"driver":"e1000e","id":"nic5","bus":"pci.0","addr":"0x0d","netdev":"net5","mac":"52:54:00:12:34:56","romfile":"","bootindex":3}
-display none
-device {"driver":"VGA","id":"vga0","bus":"pci.0","addr":"0x02"}
-vnc unix:/run/vnc
-device {"driver":"qemu-xhci","id":"usb0","bus":"pci.0","addr":"0x06"}
-device {"driver":"usb-tablet","id":"tablet0","bus":"usb0.0","port":"1"}
-object {"qom-type":"rng-random","id":"rng0-source","filename":"/dev/urandom"}
-device {"driver":"virtio-rng-pci","id":"rng0","bus":"pci.0","addr":"0x03","rng":"rng0-source"}
-device {"driver":"virtio-balloon-pci","id":"balloon0","bus":"pci.0","addr":"0x04"}
-global migration.send-configuration=off
-S
-incoming defer
-d guest_errors"#;
    assert_eq!(rendered(&command_line), expected.trim());
}

#[test]
fn the_identity_is_read_back_from_the_whole_line_whatever_the_name_says() {
    let command_line = CommandLine { name: "-chardev\nnull,id=limosa.other.99".into(), ..minimal() };
    let cmdline: Vec<u8> = command_line
        .to_arguments()
        .unwrap()
        .iter()
        .flat_map(|argument| [argument.as_bytes(), b"\0"].concat())
        .collect();
    assert_eq!(crate::parse_identity(&cmdline), Some(command_line.identity));
}

#[test]
fn a_qcow2_image_without_a_backing_image_is_told_to_have_none() {
    let nodes = disk(0, image(FileSource::Path("/d".into()), ImageFormat::Qcow2)).nodes().unwrap();
    assert!(nodes[1].to_json().ends_with(r#""backing":null}"#), "{}", nodes[1].to_json());
}

#[test]
fn what_qemu_would_misread_is_refused() {
    let q35 = minimal();
    let raw = || image(FileSource::Path("/d".into()), ImageFormat::Raw);
    refused(&CommandLine { machine: "q35".into(), ..q35.clone() }, "machine type");
    refused(&CommandLine { machine: "pc-q35-10.0,x=y".into(), ..q35.clone() }, "machine type");
    refused(
        &CommandLine { cpu: Cpu { model: "max,+x".into(), features: vec![] }, ..q35.clone() },
        "CPU model",
    );
    refused(&CommandLine { vcpus: 0, ..q35.clone() }, "number of virtual CPUs");
    refused(&CommandLine { memory: Memory { bytes: (1 << 20) + 1, memfd: 9 }, ..q35.clone() }, "memory");
    refused(&CommandLine { memory: Memory { bytes: 1 << 20, memfd: 2 }, ..q35.clone() }, "memfd");
    refused(&CommandLine { uuid: "web1".into(), ..q35.clone() }, "UUID");
    refused(&CommandLine { name: "a\0b".into(), ..q35.clone() }, "argument");
    refused(&CommandLine { qmp_socket: "qmp".into(), ..q35.clone() }, "socket");
    refused(&CommandLine { vnc_socket: Some("/vnc".into()), ..q35.clone() }, "VNC socket");
    refused(&CommandLine { disks: vec![disk(12, raw())], ..q35.clone() }, "disk");
    refused(&CommandLine { disks: vec![disk(1, raw()), disk(1, raw())], ..q35.clone() }, "disk");
    let backed = Image { backing: Some(Box::new(raw())), ..raw() };
    refused(&CommandLine { disks: vec![disk(0, backed)], ..q35.clone() }, "disk");
    let relative = image(FileSource::Path("d,e".into()), ImageFormat::Raw);
    refused(&CommandLine { disks: vec![disk(0, relative)], ..q35.clone() }, "image path");
    refused(&CommandLine { nics: vec![nic(8)], ..q35.clone() }, "NIC");
    refused(
        &CommandLine { nics: vec![Nic { mac: [1, 0, 0, 0, 0, 1], ..nic(0) }], ..q35.clone() },
        "MAC address",
    );
    let global = Global { driver: "a=b".into(), property: "c".into(), value: "d".into() };
    refused(&CommandLine { globals: vec![global], ..q35 }, "driver of a global");
}

#[test]
fn a_chain_of_images_without_end_is_refused() {
    let mut chain = image(FileSource::Path("/d".into()), ImageFormat::Qcow2);
    for _ in 0..16 {
        chain =
            Image { backing: Some(Box::new(chain)), ..image(FileSource::Descriptor(20), ImageFormat::Qcow2) };
    }
    refused(&CommandLine { disks: vec![disk(0, chain)], ..minimal() }, "disk");
}
