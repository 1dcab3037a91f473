//! Images that are hard to get right, as the tars of their layers, lowest first.

use crate::tarfile::{META, Meta, Tar};

/// An entry for the root, as most layers have.
pub fn root(tar: &mut Tar) {
    tar.dir("./");
}

/// One of everything that a tar can hold.
#[must_use]
pub fn everything() -> Vec<u8> {
    let mut tar = Tar::default();
    root(&mut tar);
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    // user::rw-, user:1000:r--, group::r--, mask::r--, other::r--
    let mut acl = 2_u32.to_le_bytes().to_vec();
    for (tag, perm, id) in
        [(1_u16, 6_u16, u32::MAX), (2, 4, 1000), (4, 4, u32::MAX), (16, 4, u32::MAX), (32, 4, u32::MAX)]
    {
        acl.extend(tag.to_le_bytes());
        acl.extend(perm.to_le_bytes());
        acl.extend(id.to_le_bytes());
    }
    tar.dir("etc").dir("usr").dir("usr/bin").dir("usr/lib").dir("var").dir("var/empty").dir("dev");
    tar.file("etc/passwd", b"root:x:0:0::/root:/bin/sh\n");
    tar.file("empty", b"");
    tar.file("block", &[7; 4096]).file("block+1", &[8; 4097]).file("big", &vec![9; 3_000_001]);
    tar.file_with("usr/bin/su", b"suid", &Meta { mode: 0o4755, ..META });
    tar.file_with("usr/bin/wall", b"sgid", &Meta { mode: 0o2755, gid: 5, ..META });
    tar.raw(b'5', "tmp/", "", &Meta { mode: 0o1777, ..META }, 0);
    tar.file_with("owned", b"x", &Meta { uid: 1000, gid: 65_534, ..META });
    tar.pax(&[("uid", b"3000000000"), ("gid", b"70000")]).file("pax-owner", b"big id");
    tar.pax(&[("mtime", b"1350244992.023960108")]).file("pax-time", b"ns");
    tar.pax(&[("mtime", b"-1.5")]).file("before-1970", b"old");
    tar.pax(&[("SCHILY.xattr.security.capability", &capability)]).file("usr/bin/ping", b"cap");
    tar.pax(&[("SCHILY.xattr.user.one", b"1"), ("SCHILY.xattr.user.two", &[0, 255, 10])])
        .file("xattrs", b"x");
    tar.pax(&[("SCHILY.xattr.trusted.md5", b"t")]).dir("xattr-dir");
    tar.pax(&[("SCHILY.xattr.system.posix_acl_access", &acl)]).file("acl", b"acl");
    tar.symlink("bin", "usr/bin").symlink("lib", "/usr/lib").symlink("dangling", "no/where");
    tar.symlink("loop-a", "loop-b").symlink("loop-b", "loop-a").symlink("long-link", &"x/".repeat(1000));
    tar.hardlink("etc/passwd-", "etc/passwd")
        .hardlink("link2", "./etc/passwd")
        .hardlink("dead-link", "dangling");
    tar.device(b'3', "dev/null", 1, 3).device(b'4', "dev/sda", 8, 0).device(b'3', "dev/high", 511, 300_000);
    // Once more where a container mounts nothing.
    tar.dir("nodes").device(b'3', "nodes/null", 1, 3).device(b'4', "nodes/sda", 8, 0).device(
        b'3',
        "nodes/high",
        511,
        300_000,
    );
    tar.raw(b'6', "fifo", "", &META, 0);
    tar.file(&"n".repeat(255), b"longest name").file("naïve-ünïcode-文件-🦀", b"utf-8");
    let deep = "d/".repeat(120);
    for depth in 1..=120 {
        tar.dir(&deep[..depth * 2]);
    }
    tar.file(&format!("{deep}leaf"), b"deep");
    tar.file("!before-dot", b"!").file("-also", b"-").file(".hidden", b".").file("...", b"...");
    tar.dir("many");
    for i in 0..700 {
        tar.file(&format!("many/{i:04}-{}", "x".repeat(i % 97)), format!("{i}").as_bytes());
    }
    tar.dir("swap-to-file").file("swap-to-file/inside", b"gone").file("swap-to-dir", b"gone");
    tar.dir("opaque").file("opaque/old", b"gone").dir("opaque/sub").file("opaque/sub/old", b"gone");
    tar.dir("kept").file("kept/a", b"a").file("kept/b", b"b").file("removed", b"gone");
    tar.dir("removed-dir").file("removed-dir/x", b"gone");
    tar.file("replaced", b"first").hardlink("replaced-link", "replaced");
    tar.file("twice", b"first").file("twice", b"second, longer");
    tar.end()
}

/// Every kind of change to [`everything`].
#[must_use]
pub fn changes() -> Vec<u8> {
    let mut tar = Tar::default();
    root(&mut tar);
    tar.file("swap-to-file", b"file now");
    tar.dir("swap-to-dir").file("swap-to-dir/inside", b"new");
    tar.dir("opaque").file("opaque/.wh..wh..opq", b"").file("opaque/new", b"new");
    tar.dir("kept").file("kept/.wh.a", b"").file("kept/c", b"c");
    tar.file(".wh.removed", b"").file(".wh.removed-dir", b"").file(".wh.never-was", b"");
    tar.file("replaced", b"second");
    tar.hardlink("across", "etc/passwd");
    tar.raw(b'5', "var", "", &Meta { mode: 0o700, uid: 7, ..META }, 0);
    // Through symlinks of the layer below, relative and absolute.
    tar.file("bin/through-relative", b"1").file("lib/through-absolute", b"2");
    tar.end()
}

/// 120 layers, some of which take away what lower ones brought.
#[must_use]
pub fn many_layers() -> Vec<Vec<u8>> {
    let one = |i: usize| {
        let mut tar = Tar::default();
        root(&mut tar);
        tar.dir("l").file(&format!("l/{i}"), format!("layer {i}").as_bytes());
        tar.file("counter", format!("{i}").as_bytes());
        if i % 10 == 9 {
            tar.file(&format!("l/.wh.{}", i - 5), b"");
        }
        tar.end()
    };
    (0..120).map(one).collect()
}

/// Small files in directories of 500.
#[must_use]
pub fn small_files(directories: usize) -> Vec<u8> {
    let mut tar = Tar::default();
    root(&mut tar);
    for d in 0..directories {
        tar.dir(&format!("d{d}"));
        for f in 0..500 {
            tar.file(&format!("d{d}/file-{f}"), format!("{d}/{f}").as_bytes());
        }
    }
    tar.end()
}
