//! Bounds on everything an image may ask of the host. All are checked while streaming, before the resource is
//! spent.

/// Bounds that an image must keep. The defaults admit every image seen in practice.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Layers of one image.
    pub layers: usize,
    /// Bytes of one layer's tar stream, and of the data it may expand to (sparse files included).
    pub layer_bytes: u64,
    /// Tar stream bytes per compressed byte, applied once a layer has expanded beyond [`Limits::ratio_floor`].
    pub ratio: u64,
    /// Bytes of tar stream below which the ratio is not judged: small layers of zeros compress very well.
    pub ratio_floor: u64,
    /// Entries of one layer, and inodes of one image. While layers are merged each takes about 50 bytes beside its name: the
    /// default keeps the whole below 64 MiB. Raise it, and [`Limits::name_bytes`], where memory is no concern.
    pub entries: u32,
    /// Bytes of all entry names of one image.
    pub name_bytes: usize,
    /// Bytes of one path.
    pub path_len: usize,
    /// Components of one path.
    pub depth: usize,
    /// Bytes of one PAX or GNU extension header.
    pub extension: usize,
    /// Bytes of one entry's extended attributes.
    pub xattrs: usize,
    /// Bytes of one manifest or index: what registries take (OCI distribution spec, "Pushing Manifests").
    pub document: u64,
    /// Bytes of one image configuration. JSON takes up to 50 times its length in memory once it is read.
    pub config: u64,
    /// Members of an archive (docker-archive, oci-archive).
    pub archive_members: usize,
    /// Bytes of an archive that is compressed or comes through a pipe, unpacked.
    pub archive_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            layers: 127,
            layer_bytes: 64 << 30,
            ratio: 200,
            ratio_floor: 1 << 30,
            entries: 550_000,
            name_bytes: 16 << 20,
            path_len: 4095,
            depth: 512,
            extension: 1 << 20,
            xattrs: 64 << 10,
            document: 4 << 20,
            config: 1 << 20,
            archive_members: 4096,
            archive_bytes: 256 << 30,
        }
    }
}

/// One path component, as Linux bounds it.
pub(crate) const NAME_MAX: usize = 255;
