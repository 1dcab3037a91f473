//! Disks of images as files, checked and mounted.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use image_unpack::RootfsDisk;

use crate::tools::{have, is_root, run};

/// The disk as one file, as a machine sees it.
pub fn flatten(disk: &RootfsDisk, path: &Path) {
    let mut out = File::create(path).unwrap();
    let mut total = 0;
    for extent in &disk.extents {
        assert_eq!(extent.offset % 4096, 0);
        assert_eq!(extent.length % 4096, 0);
        assert!(extent.length > 0);
        let file = File::open(&extent.path).unwrap();
        total += std::io::copy(&mut file.take(extent.length), &mut out).unwrap();
    }
    assert_eq!(total, disk.size);
}

/// A disk mounted read-only; unmounted when dropped.
pub struct Mount {
    /// Where.
    pub at: PathBuf,
}

impl Mount {
    /// Mounts an EROFS image, if this machine can; says loudly if not.
    #[must_use]
    pub fn erofs(image: &Path, at: &Path) -> Option<Self> {
        fs::create_dir_all(at).unwrap();
        if !is_root() {
            eprintln!("skipped: mounting needs root");
            return None;
        }
        let output = Command::new("mount")
            .args(["-t", "erofs", "-o", "loop,ro,acl,user_xattr"])
            .args([image, at])
            .output()
            .unwrap();
        if !output.status.success() {
            let known = fs::read_to_string("/proc/filesystems").unwrap_or_default().contains("erofs");
            assert!(!known, "mount: {}", String::from_utf8_lossy(&output.stderr));
            eprintln!("skipped: this kernel has no EROFS");
            return None;
        }
        Some(Self { at: at.to_path_buf() })
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.at).status();
    }
}

/// `fsck.erofs` finds nothing to say about the image.
pub fn fsck(image: &Path) {
    if have("fsck.erofs") {
        let text = run("fsck.erofs", &[image.to_str().unwrap()]);
        assert!(!text.contains("rror") && !text.contains("orrupt"), "{text}");
    }
}
