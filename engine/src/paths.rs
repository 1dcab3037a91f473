//! Where Bulkhead keeps its state and finds its parts.

use std::env;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use vmm::config::Accelerator;

use crate::EngineError;

/// The VMM's program.
const VMM: &str = "bulkhead-vmm";

/// State and parts of one installation.
#[derive(Debug, Clone)]
pub struct Paths {
    root: PathBuf,
    cache: PathBuf,
    library: PathBuf,
    /// The program that has the subcommand `supervise`; this one when absent.
    supervisor: Option<PathBuf>,
    /// What carries the packets of networks that do not say; the environment's word when absent.
    network_path: Option<String>,
}

impl Paths {
    /// Reads the environment and makes the state directory.
    ///
    /// State is in `BULKHEAD_ROOT`, else `/var/lib/bulkhead` for root, else `$XDG_DATA_HOME/bulkhead`. Kernels are in
    /// `BULKHEAD_CACHE`, else `$XDG_CACHE_HOME/bulkhead`; the VMM and the initramfs in `BULKHEAD_LIB`, else beside
    /// the executable, else in `../lib/bulkhead` from there.
    ///
    /// # Errors
    /// The state directory cannot be made.
    pub fn from_environment() -> Result<Self, EngineError> {
        Self::environment().make()
    }

    /// For programs other than `bulkhead` itself: state in `root`; `bulkhead`, the VMM and the initramfs in `library`; kernels as of
    /// [`from_environment`](Self::from_environment).
    ///
    /// # Errors
    /// The state directory cannot be made.
    pub fn at(root: PathBuf, library: PathBuf) -> Result<Self, EngineError> {
        let supervisor = Some(library.join("bulkhead"));
        Self { root, library, supervisor, ..Self::environment() }.make()
    }

    /// Says what carries the packets of networks that do not say themselves: `switch` or `kernel`.
    ///
    /// # Errors
    /// It is neither, or this host or user cannot do it.
    pub fn with_network_path(mut self, path: &str) -> Result<Self, EngineError> {
        crate::network::kernel::Path::of_all(path)?;
        self.network_path = Some(path.to_owned());
        Ok(self)
    }

    fn environment() -> Self {
        let variable = |name: &str| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let home = variable("HOME").unwrap_or_else(|| PathBuf::from("/"));
        let root = variable("BULKHEAD_ROOT").unwrap_or_else(|| {
            if nix::unistd::geteuid().is_root() {
                PathBuf::from("/var/lib/bulkhead")
            } else {
                variable("XDG_DATA_HOME").unwrap_or_else(|| home.join(".local/share")).join("bulkhead")
            }
        });
        let cache = variable("BULKHEAD_CACHE").unwrap_or_else(|| {
            variable("XDG_CACHE_HOME").unwrap_or_else(|| home.join(".cache")).join("bulkhead")
        });
        let beside =
            env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_owned)).unwrap_or_default();
        // Built, everything lies together; installed, the other parts are where programs keep theirs.
        let installed = beside.join("../lib/bulkhead");
        let together = beside.join(VMM).is_file() || !installed.join(VMM).is_file();
        let library = variable("BULKHEAD_LIB").unwrap_or(if together { beside } else { installed });
        Self { root, cache, library, supervisor: None, network_path: None }
    }

    fn make(self) -> Result<Self, EngineError> {
        for directory in
            [self.root.clone(), self.containers(), self.cache_files(), self.volumes(), self.networks()]
        {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&directory)
                .map_err(EngineError::io(format!("making the directory {}", directory.display())))?;
        }
        Ok(self)
    }

    /// The image store.
    #[must_use]
    pub fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    /// One directory per container.
    #[must_use]
    pub fn containers(&self) -> PathBuf {
        self.root.join("containers")
    }

    /// The state directory itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The state database.
    #[must_use]
    pub fn database(&self) -> PathBuf {
        self.root.join("state.db")
    }

    /// Volumes, a directory each.
    #[must_use]
    pub fn volumes(&self) -> PathBuf {
        self.root.join("volumes")
    }

    /// Networks that have a switch, a directory each.
    #[must_use]
    pub fn networks(&self) -> PathBuf {
        self.root.join("networks")
    }

    /// The program that has the subcommand `supervise`.
    ///
    /// # Errors
    /// It cannot be found.
    pub fn supervisor(&self) -> Result<PathBuf, EngineError> {
        match &self.supervisor {
            Some(path) => existing(path.clone(), "program bulkhead", "make build"),
            None => env::current_exe().map_err(EngineError::io("finding this program")),
        }
    }

    /// What a supervisor needs in its environment to find the same state and parts.
    pub fn variables(&self) -> impl Iterator<Item = (&'static str, PathBuf)> {
        [
            ("BULKHEAD_ROOT", self.root.clone()),
            ("BULKHEAD_CACHE", self.cache.clone()),
            ("BULKHEAD_LIB", self.library.clone()),
        ]
        .into_iter()
        .chain(self.network_path.iter().map(|path| (crate::network::kernel::VARIABLE, path.into())))
    }

    /// What can be made again: the template of the writable disk, the accelerator's verdict.
    #[must_use]
    pub fn cache_files(&self) -> PathBuf {
        self.root.join("cache")
    }

    /// The guest kernel of an accelerator: `BULKHEAD_KERNEL_UML` or `BULKHEAD_KERNEL_KVM`, else the build script's cache.
    ///
    /// # Errors
    /// It has not been built.
    pub fn kernel(&self, accelerator: Accelerator) -> Result<PathBuf, EngineError> {
        let (variable, file, part, make) = match accelerator {
            Accelerator::Uml => {
                ("BULKHEAD_KERNEL_UML", "uml/linux", "guest kernel for uml", "make kernel-uml")
            }
            Accelerator::Kvm => {
                ("BULKHEAD_KERNEL_KVM", "kvm/vmlinux", "guest kernel for kvm", "make kernel-kvm")
            }
        };
        let path = env::var_os(variable).map_or_else(|| self.cache.join("kernels").join(file), PathBuf::from);
        existing(path, part, make)
    }

    /// The initramfs with the agent.
    ///
    /// # Errors
    /// It has not been built.
    pub fn initramfs(&self) -> Result<PathBuf, EngineError> {
        existing(self.library.join("initramfs.cpio"), "initramfs", "make build")
    }

    /// The VMM's program.
    ///
    /// # Errors
    /// It has not been built.
    pub fn vmm(&self) -> Result<PathBuf, EngineError> {
        existing(self.library.join(VMM), "VMM", "make build")
    }

    /// The shared folders' file server.
    ///
    /// # Errors
    /// It has not been built.
    pub fn fs(&self) -> Result<PathBuf, EngineError> {
        existing(self.library.join("bulkhead-fs"), "file server of shared folders", "make build")
    }

    /// The switch's program.
    ///
    /// # Errors
    /// It has not been built.
    pub fn switch(&self) -> Result<PathBuf, EngineError> {
        existing(self.library.join("bulkhead-net"), "network switch", "make build")
    }
}

fn existing(path: PathBuf, part: &'static str, make: &'static str) -> Result<PathBuf, EngineError> {
    if path.is_file() { Ok(path) } else { Err(EngineError::MissingPart { part, path, make }) }
}
