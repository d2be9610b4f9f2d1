//! How fast one channel relays over loopback: source QEMU, two relays, destination QEMU, each a thread here.
//!
//! `cargo run --release --example relay_speed [GIB]`. Prints, judges nothing.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Instant;

use limosa_transport::{Acceptor, Count, Credential, Dialer, Error, TcpOptions, relay};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let gib: u64 = std::env::args().nth(1).map_or(Ok(4), |text| text.parse())?;
    let total = gib << 30;
    let (source, destination) = (Credential::generate()?, Credential::generate()?);
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let options = TcpOptions::default();
    let dialer = Dialer::new(
        &source,
        destination.fingerprint(),
        [7; 16],
        vec![listener.local_addr()?],
        options.clone(),
    )?;
    let acceptor = Acceptor::new(&destination, source.fingerprint(), [7; 16], options)?;
    let (mut source_qemu, source_local) = UnixStream::pair()?;
    let (mut destination_qemu, destination_local) = UnixStream::pair()?;

    let receiving = thread::spawn(move || -> Result<(), Error> {
        let (tcp, _) = listener.accept().expect("the source connects");
        relay(destination_local, acceptor.accept(tcp)?.accept()?, &Count::default())
    });
    let sending = thread::spawn(move || relay(source_local, dialer.connect(0)?, &Count::default()));
    let writing = thread::spawn(move || -> std::io::Result<()> {
        let chunk = vec![0x5a; 1 << 20];
        for _ in 0..total >> 20 {
            source_qemu.write_all(&chunk)?;
        }
        source_qemu.shutdown(std::net::Shutdown::Write)?;
        source_qemu.read_exact(&mut [0])
    });

    let begin = Instant::now();
    let mut chunk = vec![0; 1 << 20];
    let mut received = 0;
    while received < total {
        received += destination_qemu.read(&mut chunk)? as u64;
    }
    let seconds = begin.elapsed().as_secs_f64();
    destination_qemu.write_all(&[1])?;
    drop(destination_qemu);
    for thread in [receiving, sending] {
        thread.join().expect("no relay panics")?;
    }
    writing.join().expect("no writer panics")?;
    println!("{gib} GiB in {seconds:.2} s: {:.0} MB/s", total as f64 / 1e6 / seconds);
    Ok(())
}
