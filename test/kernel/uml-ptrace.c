/*
 * A preload library for the User-Mode-Linux guest of the kernel tests, for machines whose CPU has AMX.
 *
 * The guest's kernel (6.1) keeps a task's vector registers in a buffer of fixed size (2,696 bytes: x87, SSE, AVX,
 * AVX-512, PKRU) and writes them back with PTRACE_SETREGSET. A host kernel demands a buffer of its own full size
 * there, which AMX makes 11,008 bytes, and answers EFAULT to the shorter one, so that the guest panics at boot.
 * Here a short buffer is put at the head of a full one, whose rest stays in its initial state: nothing in the guest
 * can use what lies there, since AMX needs a permission that the guest's kernel does not give.
 * Source: Linux arch/x86/kernel/fpu/regset.c (xstateregs_set), Intel SDM volume 1, chapter 13 (XSAVE area).
 * No header is needed to compile it, so that the smallest compiler will do.
 */
typedef unsigned long size_type;
struct vector { void *base; size_type length; };

extern long syscall(long number, ...);
extern void *memcpy(void *target, const void *source, size_type length);
extern void *memset(void *target, int byte, size_type length);
extern int *__errno_location(void);

enum { SYS_PTRACE = 101, FIRST_PEEK = 1, LAST_PEEK = 3, GETREGSET = 0x4204, SETREGSET = 0x4205, NT_X86_XSTATE = 0x202 };
enum { FULL_LIMIT = 65536, HEADER_OFFSET = 512 };
/* The components that lie in the guest's buffer: 0-7 and 9, and APX (19) in the old place of 3 and 4. */
#define KEPT_COMPONENTS 0x802ffUL

static char full[FULL_LIMIT];
static size_type full_length;

long ptrace(long request, long pid, void *address, void *data)
{
    struct vector *given = data;
    if (request >= FIRST_PEEK && request <= LAST_PEEK) {
        /* The system call stores what it read; the C function returns it, with errno for what failed. */
        long value = 0;
        if (syscall(SYS_PTRACE, request, pid, address, &value) < 0) return -1;
        *__errno_location() = 0;
        return value;
    }
    if (request != SETREGSET || (long)address != NT_X86_XSTATE)
        return syscall(SYS_PTRACE, request, pid, address, data);
    if (full_length == 0) {
        struct vector probe = { full, FULL_LIMIT };
        if (syscall(SYS_PTRACE, GETREGSET, pid, address, &probe) < 0) return -1;
        full_length = probe.length;
    }
    if (full_length <= given->length || given->length < HEADER_OFFSET + 64)
        return syscall(SYS_PTRACE, request, pid, address, data);
    memset(full, 0, full_length);
    memcpy(full, given->base, given->length);
    *(unsigned long *)(full + HEADER_OFFSET) &= KEPT_COMPONENTS;
    struct vector whole = { full, full_length };
    return syscall(SYS_PTRACE, request, pid, address, &whole);
}
