/* From the reset vector to a kernel's 64-bit entry point, in the state that our own VMM starts a vCPU in (vmm::kvm::cpu): long mode, the
 * first GiB mapped to itself, flat segments 0x10 and 0x18, the zero page in RSI. Whoever loads this has filled guest memory as
 * vmm::kvm::fill does, and left the entry point at ENTRY. One 64 KiB ROM, which QEMU shows at 0xf0000 and below 4 GiB. */

#define BASE        0xf0000
#define ENTRY       0x6000
#define ZERO_PAGE   0x7000
#define STACK       0x8ff0
#define PAGE_TABLES 0x9000

    .text
    .code16
start:
    cli
    lgdtl %cs:(table_pointer - BASE)
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $0x08, $protected

    .code32
protected:
    movl $0x18, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl %eax, %fs
    movl %eax, %gs
    /* Physical address extension, page tables, long mode, paging. */
    movl $0x20, %eax
    movl %eax, %cr4
    movl $PAGE_TABLES, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    xorl %edx, %edx
    movl $0x100, %eax
    wrmsr
    movl $0x80000011, %eax
    movl %eax, %cr0
    ljmpl $0x10, $long_mode

    .code64
long_mode:
    movl $STACK, %esp
    movl $ZERO_PAGE, %esi
    movl $ENTRY, %eax
    jmp *(%rax)

    .balign 8
table:
    .quad 0
    .quad 0x00cf9b000000ffff
    .quad 0x00af9b000000ffff
    .quad 0x00cf93000000ffff
table_pointer:
    .word table_pointer - table - 1
    .long table

    .org 0xfff0
    .code16
    .byte 0xea
    .word start - BASE
    .word BASE >> 4
    .org 0x10000
