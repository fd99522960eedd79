//! The name server's process by itself, called as `skep net` is: `netd net --dir DIR`.

use skep_network::netd::{NetdConfig, run};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let ["net", "--dir", dir] = arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] else {
        return Err("usage: netd net --dir DIR".into());
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(run(NetdConfig::new(dir)))?)
}
