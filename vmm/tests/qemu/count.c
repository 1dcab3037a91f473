/* A plugin of QEMU's translator that counts guest instructions, for one vCPU.
 *
 *     -plugin count.so,out=FILE[,entry=ADDRESS][,profile=FILE]
 *
 * `out` is mapped and always up to date, so that whoever sees the guest do something can read how many instructions that took. Its five
 * numbers (64 bits, the host's byte order): instructions so far; repetitions of string instructions, beyond the first of each, which
 * are not among them (a CPU retires `rep movsb` as one instruction, QEMU executes it byte by byte); instructions before the one at
 * `entry` was reached first; instructions at addresses of the lower half, which are those of user programs and of the first few
 * thousand of a kernel; times that `entry` was reached.
 * `profile` gets, when QEMU ends, a line for each translated block: its address and the instructions executed in it.
 *
 * Debian's QEMU is built with plugins, but its header is not packaged: what is used of the interface is declared here after QEMU's
 * documentation (docs/devel/tcg-plugins.rst). This is version 1 of it, that of QEMU 4.2 to 8.2; QEMU refuses a plugin of another. */

#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum qemu_plugin_cb_flags { QEMU_PLUGIN_CB_NO_REGS };
enum qemu_plugin_op { QEMU_PLUGIN_INLINE_ADD_U64 };

void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, struct qemu_plugin_tb *));
void qemu_plugin_register_atexit_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, void *), void *);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *, void (*)(unsigned, void *), enum qemu_plugin_cb_flags, void *);
void qemu_plugin_register_vcpu_insn_exec_inline(struct qemu_plugin_insn *, enum qemu_plugin_op, void *, uint64_t);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);
size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *);

EXPORT int qemu_plugin_version = 1;

struct counts {
    uint64_t instructions;
    uint64_t repetitions;
    uint64_t before_entry;
    uint64_t lower_half;
    uint64_t entries;
};

/* A translated block. Blocks that are thrown away keep theirs: what was executed was executed. */
struct block {
    struct block *next;
    uint64_t address;
    uint64_t executed;
};

/* A string instruction with a repeat prefix. */
struct repeated {
    uint64_t address;
    struct block *block;
};

static struct counts *counts;
static struct block *blocks;
static const char *profile;
static uint64_t entry;
static uint64_t repeated_address, repeated_at;

static bool is_repeated(const uint8_t *bytes, size_t size)
{
    bool prefixed = false;
    for (size_t i = 0; i < size; i++) {
        uint8_t byte = bytes[i];
        if (byte == 0xf2 || byte == 0xf3)
            prefixed = true;
        else if (byte == 0x66 || byte == 0x67 || byte == 0x2e || byte == 0x36 || byte == 0x3e || byte == 0x26 ||
                 byte == 0x64 || byte == 0x65 || (byte & 0xf0) == 0x40)
            continue;
        else
            return prefixed && ((byte >= 0xa4 && byte <= 0xa7) || (byte >= 0xaa && byte <= 0xaf) || (byte >= 0x6c && byte <= 0x6f));
    }
    return false;
}

/* QEMU comes here for every repetition, and once more to find that none is left. Nothing else was executed in between. */
static void on_repeated(unsigned vcpu, void *data)
{
    struct repeated *it = data;
    (void)vcpu;
    if (repeated_address == it->address && repeated_at == counts->instructions) {
        counts->repetitions++;
        return;
    }
    counts->instructions++;
    if (it->address >> 63 == 0)
        counts->lower_half++;
    if (it->block)
        it->block->executed++;
    repeated_address = it->address;
    repeated_at = counts->instructions;
}

static void on_entry(unsigned vcpu, void *data)
{
    (void)vcpu;
    (void)data;
    if (counts->entries++ == 0)
        counts->before_entry = counts->instructions;
}

static void on_translation(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
    struct block *block = NULL;
    (void)id;
    if (profile && (block = calloc(1, sizeof *block))) {
        block->address = qemu_plugin_tb_vaddr(tb);
        block->next = blocks;
        blocks = block;
    }
    for (size_t i = 0; i < qemu_plugin_tb_n_insns(tb); i++) {
        struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
        uint64_t address = qemu_plugin_insn_vaddr(insn);
        struct repeated *it;
        if (entry && address == entry)
            qemu_plugin_register_vcpu_insn_exec_cb(insn, on_entry, QEMU_PLUGIN_CB_NO_REGS, NULL);
        if (is_repeated(qemu_plugin_insn_data(insn), qemu_plugin_insn_size(insn)) && (it = calloc(1, sizeof *it))) {
            it->address = address;
            it->block = block;
            qemu_plugin_register_vcpu_insn_exec_cb(insn, on_repeated, QEMU_PLUGIN_CB_NO_REGS, it);
            continue;
        }
        qemu_plugin_register_vcpu_insn_exec_inline(insn, QEMU_PLUGIN_INLINE_ADD_U64, &counts->instructions, 1);
        if (address >> 63 == 0)
            qemu_plugin_register_vcpu_insn_exec_inline(insn, QEMU_PLUGIN_INLINE_ADD_U64, &counts->lower_half, 1);
        if (block)
            qemu_plugin_register_vcpu_insn_exec_inline(insn, QEMU_PLUGIN_INLINE_ADD_U64, &block->executed, 1);
    }
}

static void on_exit_of_qemu(qemu_plugin_id_t id, void *data)
{
    FILE *file = fopen(profile, "w");
    (void)id;
    (void)data;
    if (!file)
        return;
    for (struct block *block = blocks; block; block = block->next)
        if (block->executed)
            fprintf(file, "%" PRIx64 " %" PRIu64 "\n", block->address, block->executed);
    fclose(file);
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv)
{
    const char *out = NULL;
    int fd;
    (void)info;
    for (int i = 0; i < argc; i++) {
        if (!strncmp(argv[i], "out=", 4))
            out = strdup(argv[i] + 4);
        else if (!strncmp(argv[i], "entry=", 6))
            entry = strtoull(argv[i] + 6, NULL, 0);
        else if (!strncmp(argv[i], "profile=", 8))
            profile = strdup(argv[i] + 8);
        else
            return -1;
    }
    fd = out ? open(out, O_RDWR | O_CREAT | O_CLOEXEC, 0600) : -1;
    if (fd < 0 || ftruncate(fd, sizeof *counts))
        return -1;
    counts = mmap(NULL, sizeof *counts, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (counts == MAP_FAILED)
        return -1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
    if (profile)
        qemu_plugin_register_atexit_cb(id, on_exit_of_qemu, NULL);
    return 0;
}
