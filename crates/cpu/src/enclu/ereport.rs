//! EREPORT: a statement about the running enclave that another enclave on the machine can check.
//!
//! Source: SDM volume 3D, "EREPORT", "REPORT" and "Report Target Info (TARGETINFO)".

use usgx_isa::LinAddr;

use super::operand::Mapped;
use super::{EncluError, Translate, check_address};
use crate::bytes::PageBytes;
use crate::keys::{self, Binding};
use crate::le;
use crate::processor::Processor;
use crate::secs::{Identity, Resident};
use crate::tracking::LogicalProcessors;

/// Offsets of TARGETINFO's fields.
mod target {
    pub(super) const SIZE: usize = 512;
    pub(super) const MEASUREMENT: usize = 0;
    pub(super) const ATTRIBUTES: usize = 32;
    pub(super) const RESERVED1: usize = 48;
    pub(super) const CONFIGSVN: usize = 50;
    pub(super) const MISCSELECT: usize = 52;
    pub(super) const RESERVED2: usize = 56;
    pub(super) const CONFIGID: usize = 64;
    pub(super) const RESERVED3: usize = 128;
}

/// Offsets of REPORT's fields.
mod report {
    pub(super) const SIZE: usize = 432;
    pub(super) const CPUSVN: usize = 0;
    pub(super) const MISCSELECT: usize = 16;
    pub(super) const ISVEXTPRODID: usize = 32;
    pub(super) const ATTRIBUTES: usize = 48;
    pub(super) const MRENCLAVE: usize = 64;
    pub(super) const MRSIGNER: usize = 128;
    pub(super) const CONFIGID: usize = 192;
    pub(super) const ISVPRODID: usize = 256;
    pub(super) const ISVSVN: usize = 258;
    pub(super) const CONFIGSVN: usize = 260;
    pub(super) const ISVFAMILYID: usize = 304;
    pub(super) const REPORTDATA: usize = 320;
    /// Start of what the MAC does not cover.
    pub(super) const KEYID: usize = 384;
    pub(super) const MAC: usize = 416;
}

const REPORTDATA_SIZE: usize = 64;
const TARGETINFO_ALIGN: u64 = 512;
const REPORTDATA_ALIGN: u64 = 128;
const REPORT_ALIGN: u64 = 512;

/// Runs EREPORT.
pub(super) fn ereport<B: PageBytes, L: LogicalProcessors>(
    cpu: &Processor<B, L>,
    enclave: &Resident,
    rbx: LinAddr,
    rcx: LinAddr,
    rdx: LinAddr,
    map: &dyn Translate,
) -> Result<(), EncluError> {
    let identity = enclave.identity().ok_or(EncluError::Gp)?;
    check_address(enclave, rbx, TARGETINFO_ALIGN)?;
    let targetinfo: [u8; target::SIZE] = Mapped::find(cpu, rbx, false, map)?.check(enclave)?.read(cpu);
    if !is_wellformed(&targetinfo, cpu.profile().has_kss()) {
        return Err(EncluError::Gp);
    }
    check_address(enclave, rcx, REPORTDATA_ALIGN)?;
    let reportdata: [u8; REPORTDATA_SIZE] = Mapped::find(cpu, rcx, false, map)?.check(enclave)?.read(cpu);
    check_address(enclave, rdx, REPORT_ALIGN)?;
    let output = Mapped::find(cpu, rdx, true, map)?.check(enclave)?;

    let mut report = describe(enclave, identity, &cpu.fuses().cpusvn, &reportdata);
    let key = cpu.fuses().derive(&Binding {
        attributes: [target::ATTRIBUTES, target::ATTRIBUTES + 8]
            .map(|offset| le::get_u64(&targetinfo, offset)),
        miscselect: le::get_u32(&targetinfo, target::MISCSELECT),
        configid: le::array(&targetinfo, target::CONFIGID),
        configsvn: le::get_u16(&targetinfo, target::CONFIGSVN),
        mrenclave: le::array(&targetinfo, target::MEASUREMENT),
        cpusvn: cpu.fuses().cpusvn,
        keyid: *cpu.report_keyid(),
        owner_epoch: true,
        seal_fuses: true,
        ..Binding::new(keys::REPORT)
    });
    let mac = keys::mac(&key, &report[..report::KEYID]);
    le::put(&mut report, report::KEYID, cpu.report_keyid());
    le::put(&mut report, report::MAC, &mac);
    output.write(cpu, &report);
    Ok(())
}

/// Whether TARGETINFO's reserved bytes are zero; those of KSS are reserved where the processor has no KSS.
fn is_wellformed(targetinfo: &[u8; target::SIZE], kss: bool) -> bool {
    let zero = |from: usize, to: usize| le::is_zero(&targetinfo[from..to]);
    zero(target::RESERVED1, target::CONFIGSVN)
        && zero(target::RESERVED2, target::CONFIGID)
        && zero(target::RESERVED3, target::SIZE)
        && (kss || zero(target::CONFIGSVN, target::MISCSELECT) && zero(target::CONFIGID, target::RESERVED3))
}

/// The report, but for KEYID and MAC.
fn describe(
    enclave: &Resident,
    identity: &Identity,
    cpusvn: &[u8; 16],
    reportdata: &[u8; REPORTDATA_SIZE],
) -> [u8; report::SIZE] {
    let mut report = [0; report::SIZE];
    let [flags, xfrm] = enclave.attributes();
    le::put(&mut report, report::CPUSVN, cpusvn);
    le::put(&mut report, report::MISCSELECT, &enclave.miscselect.to_le_bytes());
    le::put(&mut report, report::ISVEXTPRODID, &identity.isvextprodid);
    le::put(&mut report, report::ATTRIBUTES, &flags.to_le_bytes());
    le::put(&mut report, report::ATTRIBUTES + 8, &xfrm.to_le_bytes());
    le::put(&mut report, report::MRENCLAVE, &identity.mrenclave);
    le::put(&mut report, report::MRSIGNER, &identity.mrsigner);
    le::put(&mut report, report::CONFIGID, &enclave.configid);
    le::put(&mut report, report::ISVPRODID, &identity.isvprodid.to_le_bytes());
    le::put(&mut report, report::ISVSVN, &identity.isvsvn.to_le_bytes());
    le::put(&mut report, report::CONFIGSVN, &enclave.configsvn.to_le_bytes());
    le::put(&mut report, report::ISVFAMILYID, &identity.isvfamilyid);
    le::put(&mut report, report::REPORTDATA, reportdata);
    report
}
