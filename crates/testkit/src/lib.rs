//! A simulated system around the driver: everything that is not the driver or the processor, for tests.
//!
//! [`System`] joins the driver, the software processor and the simulations below, and plays a program: it
//! touches enclave pages, takes the faults, and reads and writes bytes as far as the EPCM permits. Each
//! simulation checks the contract of its trait with assertions, so a driver that maps one EPC page twice, or
//! stores a page without room for it, fails whatever test it happens in. Faults are injected by counting
//! down: "the third reservation from now fails". For tests only; a broken contract is a panic.

mod caller;
mod calls;
mod image;
mod platform;
mod refusing;
mod rng;
mod schedule;
mod sign;
mod spaces;
mod store;
mod system;
mod threads;

pub use caller::SimCaller;
pub use calls::{Call, Sgx2Result};
pub use image::{Image, ImagePage};
pub use platform::SimPlatform;
pub use refusing::{Refusable, Refusals, Refusing};
pub use rng::Rng;
pub use schedule::SchedulePlatform;
pub use spaces::SimSpaces;
pub use store::{Operation, SimStore};
pub use system::{Leaf, SimHw, SimMachine, SimMachineOn, System, SystemOn, Touch};
pub use threads::SimThreads;
pub use usgx_cpu::Profile;
