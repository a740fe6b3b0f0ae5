//! What cluster tests run beside Rug: a small web server, as light as an appliance can be, and the guard that cleans up
//! after a test process that was killed.
//!
//! ```text
//! rug-test-helper serve PORT NAME   HTTP/1.1 with keep-alive; every GET answers 200 with NAME
//! rug-test-helper guard DIR         waits for the end of its standard input, then ends all processes of DIR
//! ```

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["serve", port, name] => serve(port, name),
        ["guard", dir] => guard(Path::new(dir)),
        _ => Err("usage: rug-test-helper serve PORT NAME | guard DIR".to_owned()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("rug-test-helper: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn serve(port: &str, name: &str) -> Result<(), String> {
    let port: u16 = port.parse().map_err(|_| format!("`{port}` is not a port"))?;
    let listener = TcpListener::bind(("127.0.0.1", port)).map_err(|e| format!("listen at {port}: {e}"))?;
    for stream in listener.incoming().flatten() {
        let name = name.to_owned();
        std::thread::spawn(move || answer(&stream, &name));
    }
    Ok(())
}

/// Answers requests until the client goes. Its errors end the connection and nothing else.
fn answer(stream: &TcpStream, name: &str) {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    loop {
        line.clear();
        match reader.read_line(&mut line) {
            Ok(1..) if line.trim().is_empty() => {
                let text = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{name}", name.len());
                let mut writer = stream;
                if writer.write_all(text.as_bytes()).is_err() {
                    return;
                }
            }
            Ok(1..) => {}
            _ => return,
        }
    }
}

fn guard(dir: &Path) -> Result<(), String> {
    std::io::stdin().read_to_end(&mut Vec::new()).map_err(|e| format!("wait for the test: {e}"))?;
    tests::cluster::processes::end_all(dir).map_err(|e| e.to_string())
}
