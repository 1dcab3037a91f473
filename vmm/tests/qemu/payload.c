/* A bare-metal guest that drives a disk (and a network interface) over virtio-mmio and notes what each request took.
 *
 * It polls, so that only the device and its transport are measured, not an interrupt. What it noted goes to the disk, from
 * RESULT_SECTOR on, as 64-bit counts of the time-stamp counter: a row of ROUNDS each for reads, writes and echoes, then a row of
 * BURSTS each for bursts of reads and bursts of frames. Defined when it is compiled: BLOCK and NET (addresses of registers, NET 0 if
 * there is none), ROUNDS, BURSTS, BURST (requests in each), RESULT_SECTOR. */

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

#define QUEUE_SIZE 64
#define SMALL 4096
#define LARGE 65536
#define DEPTH 16
#define FRAME 64
#define LONG_FRAME 1514
#define BUFFER 2048
#define NET_HEADER 12

/* The page directory of the third GiB, in memory that nobody else uses, and its entry in the tables that the guest starts with. */
#define DEVICE_DIRECTORY 0x40000ul
#define DEVICE_ENTRY (0xa000ul + 8 * 3)

struct descriptor { u64 address; u32 length; u16 flags, next; };
struct available { u16 flags, index, ring[QUEUE_SIZE], unused; };
struct used { u16 flags, index; struct { u32 head, length; } ring[QUEUE_SIZE]; };
struct queue {
    struct descriptor descriptors[QUEUE_SIZE];
    struct available available;
    struct used used __attribute__((aligned(8)));
    u16 seen;
} __attribute__((aligned(4096)));
struct header { u32 type, reserved; u64 sector; };

static struct queue disk, receive, transmit;
static struct header headers[DEPTH];
static u8 status[DEPTH];
static u8 data[DEPTH][LARGE] __attribute__((aligned(4096)));
static u8 incoming[QUEUE_SIZE][BUFFER], outgoing[QUEUE_SIZE][BUFFER];
static struct { u64 rows[3][ROUNDS], bursts[2][BURSTS]; u8 fill[4096]; } results __attribute__((aligned(4096)));

#define REGISTER(base, offset) (*(volatile u32 *)((u64)(base) + (offset)))

static u64 now(void)
{
    u32 low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high)::"memory");
    return (u64)high << 32 | low;
}

static void barrier(void) { __asm__ volatile("lock; addl $0, (%%rsp)" ::: "memory"); }

static void end(void)
{
    /* QEMU's own exit, then the keyboard controller's reset. */
    __asm__ volatile("outl %0, %1" ::"a"(16), "d"((u16)0xf4));
    __asm__ volatile("outb %0, %1" ::"a"((u8)0xfe), "d"((u16)0x64));
    for (;;)
        __asm__ volatile("cli; hlt");
}

static void say(const char *text)
{
    for (; *text; text++)
        __asm__ volatile("outb %0, %1" ::"a"(*text), "d"((u16)0x3f8));
}

static void fail(const char *what)
{
    say("FAIL ");
    say(what);
    say("\n");
    __asm__ volatile("outl %0, %1" ::"a"(1), "d"((u16)0xf4));
    end();
}

static void begin(u64 base)
{
    REGISTER(base, 0x70) = 0;
    while (REGISTER(base, 0x70))
        ;
    REGISTER(base, 0x70) = 1;
    REGISTER(base, 0x70) = 3;
    /* Nothing but VERSION_1. */
    REGISTER(base, 0x24) = 0;
    REGISTER(base, 0x20) = 0;
    REGISTER(base, 0x24) = 1;
    REGISTER(base, 0x20) = 1;
    REGISTER(base, 0x70) = 11;
    if (REGISTER(base, 0x70) != 11)
        fail("features");
}

static void address(u64 base, u32 offset, void *pointer)
{
    REGISTER(base, offset) = (u32)(u64)pointer;
    REGISTER(base, offset + 4) = (u32)((u64)pointer >> 32);
}

static void set_up(u64 base, u32 index, struct queue *queue)
{
    REGISTER(base, 0x30) = index;
    REGISTER(base, 0x38) = QUEUE_SIZE;
    address(base, 0x80, queue->descriptors);
    address(base, 0x90, &queue->available);
    address(base, 0xa0, &queue->used);
    /* No interrupts. */
    queue->available.flags = 1;
    REGISTER(base, 0x44) = 1;
}

static void offer(u64 base, u32 index, struct queue *queue, u16 head)
{
    queue->available.ring[queue->available.index % QUEUE_SIZE] = head;
    barrier();
    *(volatile u16 *)&queue->available.index = queue->available.index + 1;
    barrier();
    if (!(*(volatile u16 *)&queue->used.flags & 1))
        REGISTER(base, 0x50) = index;
}

static u32 wait(struct queue *queue)
{
    u32 head;
    while (*(volatile u16 *)&queue->used.index == queue->seen)
        __asm__ volatile("pause" ::: "memory");
    barrier();
    head = queue->used.ring[queue->seen % QUEUE_SIZE].head;
    queue->seen++;
    return head;
}

static void request(u32 slot, u32 type, u64 sector, void *at, u32 length)
{
    struct descriptor *first = &disk.descriptors[3 * slot];
    headers[slot] = (struct header){type, 0, sector};
    status[slot] = 0xff;
    first[0] = (struct descriptor){(u64)&headers[slot], sizeof headers[slot], 1, (u16)(3 * slot + 1)};
    first[1] = (struct descriptor){(u64)at, length, (u16)(1 | (type ? 0 : 2)), (u16)(3 * slot + 2)};
    first[2] = (struct descriptor){(u64)&status[slot], 1, 2, 0};
    offer(BLOCK, 0, &disk, (u16)(3 * slot));
}

static u64 read_burst(void)
{
    u32 asked = 0, done = 0;
    u64 began = now();
    for (; asked < DEPTH; asked++)
        request(asked, 0, (u64)asked * (LARGE / 512), data[asked], LARGE);
    while (done < BURST) {
        u32 slot = wait(&disk) / 3;
        done++;
        if (status[slot])
            fail("status of a burst");
        if (asked < BURST) {
            request(slot, 0, (u64)asked * (LARGE / 512), data[slot], LARGE);
            asked++;
        }
    }
    return now() - began;
}

static void drive_disk(void)
{
    u64 began;
    begin(BLOCK);
    set_up(BLOCK, 0, &disk);
    REGISTER(BLOCK, 0x70) = 15;
    for (u32 type = 0; type < 2; type++)
        for (u32 round = 0; round < ROUNDS; round++) {
            began = now();
            request(0, type, round * (SMALL / 512), data[0], SMALL);
            wait(&disk);
            results.rows[type][round] = now() - began;
            if (status[0])
                fail("status");
        }
    for (u32 burst = 0; burst < BURSTS; burst++)
        results.bursts[0][burst] = read_burst();
}

static void send(u32 slot, u32 length, u8 kind)
{
    u8 *frame = outgoing[slot] + NET_HEADER;
    /* To everybody, from us; a protocol for experiments; whether it is to be sent back. */
    for (u32 i = 0; i < 6; i++) {
        frame[i] = 0xff;
        frame[6 + i] = i == 0 ? 2 : i == 5 ? 1 : 0;
    }
    frame[12] = 0x88;
    frame[13] = 0xb5;
    frame[14] = kind;
    transmit.descriptors[slot] = (struct descriptor){(u64)outgoing[slot], NET_HEADER + length, 0, 0};
    offer(NET, 1, &transmit, (u16)slot);
}

static u64 frame_burst(void)
{
    u32 asked = 0, done = 0;
    u64 began = now();
    for (; asked < QUEUE_SIZE; asked++)
        send(asked, LONG_FRAME, 0);
    while (done < BURST) {
        u32 slot = wait(&transmit);
        done++;
        if (asked < BURST) {
            send(slot, LONG_FRAME, 0);
            asked++;
        }
    }
    return now() - began;
}

static void drive_net(void)
{
    u64 began;
    begin(NET);
    set_up(NET, 0, &receive);
    set_up(NET, 1, &transmit);
    REGISTER(NET, 0x70) = 15;
    for (u32 i = 0; i < QUEUE_SIZE; i++) {
        receive.descriptors[i] = (struct descriptor){(u64)incoming[i], BUFFER, 2, 0};
        offer(NET, 0, &receive, (u16)i);
    }
    for (u32 round = 0; round < ROUNDS; round++) {
        u32 head;
        began = now();
        send(0, FRAME, 1);
        head = wait(&receive);
        results.rows[2][round] = now() - began;
        wait(&transmit);
        offer(NET, 0, &receive, (u16)head);
    }
    for (u32 burst = 0; burst < BURSTS; burst++)
        results.bursts[1][burst] = frame_burst();
}

void _start(void)
{
    u64 *directory = (u64 *)DEVICE_DIRECTORY;
    for (u64 i = 0; i < 512; i++)
        directory[i] = (0xc0000000ul + (i << 21)) | 0x83;
    *(volatile u64 *)DEVICE_ENTRY = DEVICE_DIRECTORY | 3;
    drive_disk();
    if (NET)
        drive_net();
    request(0, 1, RESULT_SECTOR, &results, sizeof results / 512 * 512);
    wait(&disk);
    if (status[0])
        fail("results");
    end();
}
