//! Bulkhead's image store: OCI references, registries, layers, and EROFS rootfs disks.
