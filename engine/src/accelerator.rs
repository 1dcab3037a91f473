//! What executes guests on this host: measured, remembered until the next boot, and never weakened silently.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::path::Path;

use serde::{Deserialize, Serialize};
use vmm::config::Accelerator;
use vmm::kvm::{self, Probe};

use crate::EngineError;
use crate::options::{AcceleratorChoice, Isolation};

/// The device that is probed.
const DEV_KVM: &str = "/dev/kvm";
/// What distinguishes one boot of the host from the next.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// What /dev/kvm is worth on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kvm {
    /// Guest kernels run at hardware speed.
    Hardware,
    /// Guest kernels are executed in software.
    Software {
        /// Nanoseconds for one instruction in kernel mode.
        nanoseconds: u64,
    },
    /// It cannot be opened or does not work.
    Unusable {
        /// Why not.
        why: String,
    },
}

/// The accelerator that was chosen for a container.
#[derive(Debug)]
pub struct Chosen {
    /// Which one.
    pub accelerator: Accelerator,
    /// /dev/kvm, open, for `kvm`.
    pub kvm: Option<File>,
    /// The boundary between guest and host, for people.
    pub boundary: &'static str,
    /// One line that must be shown: the choice is weaker than a hardware VM, and it was made now for the first time since boot.
    pub notice: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Remembered {
    boot_id: String,
    kvm: Kvm,
}

/// Opens /dev/kvm and runs guest instructions on it.
#[must_use]
pub fn probe() -> Kvm {
    match open_kvm() {
        Err(why) => Kvm::Unusable { why },
        Ok(file) => match kvm::probe(&file) {
            Probe::Hardware => Kvm::Hardware,
            Probe::Software { nanos } => Kvm::Software { nanoseconds: u64::from(nanos) },
            Probe::Unusable { why } => Kvm::Unusable { why },
        },
    }
}

fn open_kvm() -> Result<File, String> {
    OpenOptions::new().read(true).write(true).open(DEV_KVM).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => format!("{DEV_KVM} does not exist"),
        io::ErrorKind::PermissionDenied => {
            format!("{DEV_KVM} may not be opened by this user (the group kvm usually may)")
        }
        _ => format!("{DEV_KVM} could not be opened: {e}"),
    })
}

/// The verdict of this boot, measured if nobody has yet. The second value tells whether it was measured now.
fn remembered(cache: &Path) -> (Kvm, bool) {
    let path = cache.join("kvm.json");
    let boot_id = fs::read_to_string(BOOT_ID).unwrap_or_default();
    let mut text = String::new();
    let known = File::open(&path)
        .and_then(|file| file.take(4096).read_to_string(&mut text))
        .ok()
        .and_then(|_| serde_json::from_str::<Remembered>(&text).ok())
        .filter(|r| r.boot_id == boot_id && !boot_id.is_empty());
    // A device that could not be opened may have been mended since: that is cheap to try again.
    if let Some(Remembered { kvm: kvm @ (Kvm::Hardware | Kvm::Software { .. }), .. }) = known {
        return (kvm, false);
    }
    let kvm = probe();
    let fresh = known.is_none_or(|r| r.kvm != kvm);
    let remember = || -> io::Result<()> {
        let temporary = cache.join(format!("kvm.{}.new", std::process::id()));
        fs::write(&temporary, serde_json::to_vec(&Remembered { boot_id, kvm: kvm.clone() })?)?;
        fs::rename(&temporary, &path)
    };
    // Not remembering costs the next start a few milliseconds, nothing else.
    let _ = remember();
    (kvm, fresh)
}

impl Kvm {
    fn weakness(&self) -> String {
        match self {
            Self::Hardware => "/dev/kvm runs guest kernels in hardware".to_owned(),
            Self::Software { nanoseconds } => {
                format!("{DEV_KVM} executes guest kernels in software ({nanoseconds} ns an instruction)")
            }
            Self::Unusable { why } => why.clone(),
        }
    }
}

/// The boundary that an accelerator gives here, for people.
#[must_use]
pub fn boundary(accelerator: Accelerator, kvm: &Kvm) -> &'static str {
    match (accelerator, kvm) {
        (Accelerator::Uml, _) => "user-space kernel in a jail",
        (Accelerator::Kvm, Kvm::Hardware) => "hardware virtual machine",
        (Accelerator::Kvm, _) => "virtual machine executed by the host's kernel in software",
    }
}

/// Chooses the accelerator for one container.
///
/// # Errors
/// The accelerator that was asked for does not work here, or is weaker than the isolation that was asked for.
pub fn choose(choice: AcceleratorChoice, isolation: Isolation, cache: &Path) -> Result<Chosen, EngineError> {
    // An explicit uml needs no verdict on KVM.
    if choice == AcceleratorChoice::Named(Accelerator::Uml) && isolation == Isolation::Any {
        return Ok(chosen(Accelerator::Uml, None, boundary(Accelerator::Uml, &Kvm::Hardware), None));
    }
    let (kvm, fresh) = remembered(cache);
    let accelerator = match choice {
        AcceleratorChoice::Named(named) => named,
        AcceleratorChoice::Auto if kvm == Kvm::Hardware => Accelerator::Kvm,
        AcceleratorChoice::Auto => Accelerator::Uml,
    };
    let boundary = boundary(accelerator, &kvm);
    if isolation == Isolation::Vm && (accelerator != Accelerator::Kvm || kvm != Kvm::Hardware) {
        return Err(EngineError::Option {
            option: "--isolation vm".to_owned(),
            why: format!("the {} accelerator gives a {boundary}: {}", accelerator.name(), kvm.weakness()),
            next: "use a host with hardware KVM, or run it without --isolation vm".to_owned(),
        });
    }
    let file = if accelerator == Accelerator::Kvm {
        let unusable = |why| EngineError::Accelerator {
            name: "kvm",
            why,
            next: "run it with --accel auto or --accel uml; bulkhead doctor tells which accelerators work",
        };
        if let Kvm::Unusable { why } = kvm {
            return Err(unusable(why));
        }
        Some(open_kvm().map_err(unusable)?)
    } else {
        None
    };
    let notice = (fresh && choice == AcceleratorChoice::Auto && kvm != Kvm::Hardware)
        .then(|| format!("accelerator {} ({boundary}), because {}", accelerator.name(), kvm.weakness()));
    Ok(chosen(accelerator, file, boundary, notice))
}

fn chosen(
    accelerator: Accelerator,
    kvm: Option<File>,
    boundary: &'static str,
    notice: Option<String>,
) -> Chosen {
    Chosen { accelerator, kvm, boundary, notice }
}
