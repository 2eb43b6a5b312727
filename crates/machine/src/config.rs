//! What a machine is told when it starts.

use std::path::PathBuf;

use usgx_driver::Behaviour;

/// The machine to build.
#[derive(Clone, Debug)]
pub struct MachineConfig {
    /// Size of each section of the EPC in bytes, multiples of 4096: one to eight of them. Section `i` is on NUMA node
    /// `i`.
    pub epc_bytes: Vec<u64>,
    /// Name of the processor's profile; see [`usgx_cpu::Profile::all`].
    pub profile: String,
    /// Where the processor's fuse keys are kept, so that sealed data outlives the machine. Without a directory, or
    /// with one that cannot be used, the keys live as long as the machine.
    pub state_dir: Option<PathBuf>,
    /// A directory for evicted pages; without one they stay in memory.
    pub swap: Option<PathBuf>,
    /// Where the driver goes past Linux.
    pub behaviour: Behaviour,
}

impl Default for MachineConfig {
    /// 128 MiB of EPC, as usual on clients; the default profile; nothing on disk.
    fn default() -> Self {
        Self {
            epc_bytes: vec![128 << 20],
            profile: usgx_cpu::Profile::default().name().to_owned(),
            state_dir: None,
            swap: None,
            behaviour: Behaviour::default(),
        }
    }
}
