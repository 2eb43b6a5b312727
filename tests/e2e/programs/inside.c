/*
 * An enclave that is interrupted, faults, computes and waits, and programs around it that signal, fork, exec, stop and
 * end meanwhile. The enclave is built from the code in this file.
 *
 *   inside KEY MODE [DEBUG]    KEY: a signing key (enclave_worker makes one). Modes: the table at the end.
 *
 * The enclave has four threads. Each has three SSA frames and takes a `struct request`: at frame 0 it does what
 * `operation` says, at frames above it is a handler and does what `in_handler` says with the frame below.
 */
#define _GNU_SOURCE
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <spawn.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>

#include "build.h"
#include "entry.h"
#include "modes.h"
#include "rights.h"

enum {
	EENTER = 2,
	ERESUME = 3,
	EEXIT = 4,
	THREADS = 4,
	FRAMES = 3,
	/* Pages: the TCSs, their SSAs, code, data that can be written. */
	SSA = THREADS,
	CODE = SSA + THREADS * FRAMES,
	DATA = CODE + 1,
	/* More than the smallest EPC. */
	DATA_PAGES = 80,
	PAGES = DATA + DATA_PAGES,
	SIZE = 128 * PAGE,
	/* Operations. */
	NOP = 0,
	SPIN = 1,
	UD2 = 2,
	LOAD = 3,
	STORE = 4,
	JUMP = 5,
	DIVIDE = 6,
	BREAK = 7,
	HALT = 8,
	CALL = 9,
	WAIT = 10,
	WIDE = 11,
	/* In a handler. */
	SKIP = 1,
	AGAIN = 2,
};

struct request {
	uint64_t operation, a, b, result, in_handler, skip, frame, exit_info;
	/* 1 when a thread has begun to spin or to wait. */
	uint64_t begun;
};

extern const uint8_t enclave_start[], enclave_end[];
__asm__(".pushsection .rodata\n"
	"enclave_start:\n"
	"	mov %rcx, %r10\n"
	"	mov %rax, 48(%rdi)\n"
	"	test %eax, %eax\n"
	"	jnz 80f\n"
	"	mov (%rdi), %rax\n"
	"	cmp $1, %rax\n"
	"	je 1f\n"
	"	cmp $2, %rax\n"
	"	je 2f\n"
	"	cmp $3, %rax\n"
	"	je 3f\n"
	"	cmp $4, %rax\n"
	"	je 4f\n"
	"	cmp $5, %rax\n"
	"	je 5f\n"
	"	cmp $6, %rax\n"
	"	je 6f\n"
	"	cmp $7, %rax\n"
	"	je 7f\n"
	"	cmp $8, %rax\n"
	"	je 8f\n"
	"	cmp $9, %rax\n"
	"	je 9f\n"
	"	cmp $10, %rax\n"
	"	je 10f\n"
	"	cmp $11, %rax\n"
	"	je 11f\n"
	"	mov 8(%rdi), %rax\n"
	"	inc %rax\n"
	"	mov %rax, 24(%rdi)\n"
	/* Leaves; nothing of the enclave stays in a register. */
	"90:	mov %r10, %rbx\n"
	"	xor %edx, %edx\n"
	"	xor %ecx, %ecx\n"
	"	xor %r10d, %r10d\n"
	"	mov $4, %eax\n"
	"	enclu\n"
	"	ud2\n"
	/* Spins with something in every register, and looks whether it still is there. */
	"1:	movq $1, 64(%rdi)\n"
	"	mov 8(%rdi), %rcx\n"
	"	mov $0x1111, %r8d\n"
	"	mov $0x2222, %r9d\n"
	"	mov $0x3333, %r11d\n"
	"	mov $0x4444, %r12d\n"
	"	mov $0x5555, %r13d\n"
	"	mov $0x6666, %r14d\n"
	"	mov $0x7777, %r15d\n"
	"	mov $0x8888, %ebx\n"
	"	mov $0x9999, %edx\n"
	"	movq %r8, %xmm0\n"
	"	movq %r15, %xmm15\n"
	"	fld1\n"
	"	movq %rsp, %xmm1\n"
	"	mov $0xaaaa, %esp\n"
	"	movq %rbp, %xmm2\n"
	"	mov $0xbbbb, %ebp\n"
	"	std\n"
	"20:	dec %rcx\n"
	"	jnz 20b\n"
	"	cld\n"
	"	xor %eax, %eax\n"
	"	cmp $0xaaaa, %rsp\n"
	"	setne %al\n"
	"	cmp $0xbbbb, %rbp\n"
	"	setne %ah\n"
	"	movq %xmm1, %rsp\n"
	"	movq %xmm2, %rbp\n"
	"	lea -0x1111(%r8), %rcx\n"
	"	or %rcx, %rax\n"
	"	lea -0x2222(%r9), %rcx\n"
	"	or %rcx, %rax\n"
	"	lea -0x3333(%r11), %rcx\n"
	"	or %rcx, %rax\n"
	"	lea -0x4444(%r12), %rcx\n"
	"	or %rcx, %rax\n"
	"	lea -0x5555(%r13), %rcx\n"
	"	or %rcx, %rax\n"
	"	lea -0x6666(%r14), %rcx\n"
	"	or %rcx, %rax\n"
	"	lea -0x7777(%r15), %rcx\n"
	"	or %rcx, %rax\n"
	"	lea -0x8888(%rbx), %rcx\n"
	"	or %rcx, %rax\n"
	"	lea -0x9999(%rdx), %rcx\n"
	"	or %rcx, %rax\n"
	"	movq %xmm0, %rcx\n"
	"	sub %r8, %rcx\n"
	"	or %rcx, %rax\n"
	"	movq %xmm15, %rcx\n"
	"	sub %r15, %rcx\n"
	"	or %rcx, %rax\n"
	"	fld1\n"
	"	fcomip %st(1), %st\n"
	"	fstp %st(0)\n"
	"	je 21f\n"
	"	or $0x40000000, %rax\n"
	"21:	pxor %xmm0, %xmm0\n"
	"	pxor %xmm15, %xmm15\n"
	"	mov %rax, 24(%rdi)\n"
	"	jmp 90b\n"
	"2:	ud2\n"
	"	movq $2, 24(%rdi)\n"
	"	jmp 90b\n"
	"3:	mov 8(%rdi), %rax\n"
	"	mov (%rax), %rax\n"
	"	mov %rax, 24(%rdi)\n"
	"	jmp 90b\n"
	"4:	mov 8(%rdi), %rax\n"
	"	mov 16(%rdi), %rcx\n"
	"	mov %rcx, (%rax)\n"
	"	movq $4, 24(%rdi)\n"
	"	jmp 90b\n"
	"5:	jmp *8(%rdi)\n"
	"6:	xor %edx, %edx\n"
	"	xor %ecx, %ecx\n"
	"	mov $7, %eax\n"
	"	div %ecx\n"
	"	movq $6, 24(%rdi)\n"
	"	jmp 90b\n"
	"7:	int3\n"
	"	movq $7, 24(%rdi)\n"
	"	jmp 90b\n"
	"8:	hlt\n"
	"	movq $8, 24(%rdi)\n"
	"	jmp 90b\n"
	"9:	mov %rdi, %r12\n"
	"	mov $39, %eax\n"
	"	syscall\n"
	"	mov %rax, 24(%r12)\n"
	"	mov %r12, %rdi\n"
	"	jmp 90b\n"
	"10:	mov 8(%rdi), %rax\n"
	"	movq $1, 64(%rdi)\n"
	"30:	pause\n"
	"	cmpq $0, (%rax)\n"
	"	je 30b\n"
	"	movq $10, 24(%rdi)\n"
	"	jmp 90b\n"
	/* Upper halves of the wide registers. */
	"11:	movq $1, 64(%rdi)\n"
	"	mov 8(%rdi), %rcx\n"
	"	vmovdqu 16(%rdi), %ymm9\n"
	"40:	dec %rcx\n"
	"	jnz 40b\n"
	"	vextracti128 $1, %ymm9, %xmm8\n"
	"	vmovq %xmm8, %rax\n"
	"	mov %rax, 24(%rdi)\n"
	"	vzeroall\n"
	"	jmp 90b\n"
	/* A handler: RAX is the number of its frame, and GS begins with this thread's first one. */
	"80:	mov 32(%rdi), %rcx\n"
	"	cmp $1, %rcx\n"
	"	je 81f\n"
	"	cmp $2, %rcx\n"
	"	je 2b\n"
	"	jmp 90b\n"
	"81:	dec %eax\n"
	"	shl $12, %rax\n"
	"	mov %gs:4096-184+160(%rax), %ecx\n"
	"	mov %rcx, 56(%rdi)\n"
	"	mov 40(%rdi), %rcx\n"
	"	add %rcx, %gs:4096-184+136(%rax)\n"
	"	jmp 90b\n"
	"enclave_end:\n"
	".popsection\n");

static uint8_t *base;
static const void *vdso_enter;
static const char *key_path, *self_path;
static int device, debug;
static uint8_t contents[PAGES][PAGE] __attribute__((aligned(PAGE)));

static uint64_t page_flags(int page)
{
	if (page < SSA)
		return SECINFO_TCS;
	if (page == CODE)
		return SECINFO_REG | PROT_READ | PROT_EXEC;
	return SECINFO_REG | PROT_READ | PROT_WRITE;
}

static void lay_out(void)
{
	for (int i = 0; i < THREADS; i++) {
		const uint64_t ssa = (SSA + i * FRAMES) * PAGE;

		lay_out_tcs(contents[i], ssa, FRAMES, CODE * PAGE, ssa, ssa);
	}
	memcpy(contents[CODE], enclave_start, enclave_end - enclave_start);
	for (int i = 0; i < DATA_PAGES; i++)
		for (int k = 0; k < PAGE; k += 8)
			*(uint64_t *)(contents[DATA + i] + k) = (uint64_t)i << 32 | k;
}

static struct blueprint plan = {
	.pages = PAGES, .size = SIZE, .attributes = 4, .xfrm = 3, .contents = contents, .flags = page_flags,
};

static void build(void)
{
	lay_out();
	plan.key = key_path;
	plan.attributes |= debug ? 2 : 0;
	base = build_enclave(&plan, &device);
}

static uint64_t tcs(int thread)
{
	return (uint64_t)base + thread * PAGE;
}

/*
 * By way of the vDSO. The enclave works with the stack pointers of its caller; so what one call has left interrupted
 * can be resumed by another only if both have their frames at the same place: from one caller, by this function.
 */
static __attribute__((noinline)) struct sgx_enclave_run visit(int thread, struct request *request, unsigned leaf)
{
	struct sgx_enclave_run run = { .tcs = tcs(thread) };
	int result = enter(request, leaf, &run, vdso_enter, 0);

	if (result)
		fail(3, "the vDSO function returned %d", result);
	return run;
}

#define ecall(thread, request) visit(thread, request, EENTER)
#define resume(thread) visit(thread, NULL, ERESUME)

static uint64_t nop(int thread, uint64_t value)
{
	struct request request = { .operation = NOP, .a = value };
	struct sgx_enclave_run run = ecall(thread, &request);

	if (run.function != EEXIT)
		fail(3, "exception %u, error %#x", run.exception_vector, run.exception_error_code);
	return request.result;
}

/*
 * By an ENCLU of the program's own; the AEP resumes. Registers are kept as by a function call.
 */
extern const uint8_t raw_enclu[], raw_aep[], raw_after[];
void raw_enter(struct request *request, uint64_t tcs, uint64_t leaf);
__asm__(".text\n"
	"raw_enter:\n"
	"	push %rbp\n"
	"	mov %rsp, %rbp\n"
	"	push %rbx\n"
	"	push %r12\n"
	"	push %r13\n"
	"	push %r14\n"
	"	push %r15\n"
	"	push %r15\n"
	"	mov %rsi, %rbx\n"
	"	lea raw_aep(%rip), %rcx\n"
	"	mov %rdx, %rax\n"
	"raw_enclu:\n"
	"	enclu\n"
	"raw_after:\n"
	"	pop %r15\n"
	"	pop %r15\n"
	"	pop %r14\n"
	"	pop %r13\n"
	"	pop %r12\n"
	"	pop %rbx\n"
	"	pop %rbp\n"
	"	ret\n"
	"raw_aep:\n"
	"	enclu\n"
	"	jmp raw_after\n");

static volatile long ticks, inside_ticks, wrong_ticks;
static volatile int last_signal, last_code, last_trap;
static volatile uint64_t last_error, last_address;
static sigjmp_buf back;
static void *volatile aep;

static greg_t *registers(void *context)
{
	return ((ucontext_t *)context)->uc_mcontext.gregs;
}

static void install(int number, void (*handler)(int, siginfo_t *, void *), int flags)
{
	struct sigaction action = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO | flags };

	sigaction(number, &action, NULL);
}

/* What no handler may ever see: registers of the enclave, or its segments. */
static void tick(int number, siginfo_t *info, void *context)
{
	greg_t *regs = registers(context);
	uint64_t rip = regs[REG_RIP];
	int own = errno;

	(void)number;
	(void)info;
	ticks++;
	if (rip - (uint64_t)base < SIZE)
		wrong_ticks++;
	/* At the AEP the registers are those of an asynchronous exit; on the way to a resume some are the same. */
	if (!debug && regs[REG_RAX] == ERESUME && (uint64_t)regs[REG_RBX] - (uint64_t)base < SIZE) {
		inside_ticks++;
		if (rip != (uint64_t)regs[REG_RCX] || regs[REG_RDI] || regs[REG_RSI] || regs[REG_RDX] || regs[REG_R8] ||
		    regs[REG_R15] || regs[REG_EFL] & 0x8d5)
			wrong_ticks++;
	}
	errno = own;
}

static void set_timer(int number, long microseconds)
{
	struct itimerval timer = { { 0, microseconds }, { 0, microseconds } };

	install(number, tick, SA_RESTART);
	setitimer(ITIMER_REAL, &timer, NULL);
}

static void run_ticking(int raw)
{
	struct timespec begin, now;
	int wrong = 0;

	set_timer(SIGALRM, 1000);
	clock_gettime(CLOCK_MONOTONIC, &begin);
	do {
		struct request request = { .operation = SPIN, .a = 3000000 };

		if (raw)
			raw_enter(&request, tcs(0), EENTER);
		else
			ecall(0, &request);
		wrong += request.result != 0;
		clock_gettime(CLOCK_MONOTONIC, &now);
	} while ((inside_ticks < 200 && now.tv_sec - begin.tv_sec < 100) || now.tv_sec == begin.tv_sec);
	set_timer(SIGALRM, 0);
	printf("interrupted inside %d, contexts wrong %ld, results wrong %d\n", inside_ticks >= 200, wrong_ticks, wrong);
}

static void ticking(void)
{
	run_ticking(0);
}

static void ticking_raw(void)
{
	run_ticking(1);
}

/* Short visits: the signals land in all steps of entering and leaving. */
static void visiting(void)
{
	int wrong = 0;

	set_timer(SIGALRM, 100);
	/* At least so many ticks, however fast the computer and rare its ticks. */
	for (uint64_t i = 0; (i < 100000 && ticks < 3000) || (i < 100000000 && ticks <= 100); i++)
		wrong += nop(i % THREADS, i) != i + 1;
	set_timer(SIGALRM, 0);
	printf("ticks %d, contexts wrong %ld, results wrong %d\n", ticks > 100, wrong_ticks, wrong);
}

static void nested_tick(int number, siginfo_t *info, void *context)
{
	tick(number, info, context);
	/* The enclave's handler, on the frame above, of the very thread that was interrupted. */
	struct request request = { .operation = NOP, .a = 5 };
	struct sgx_enclave_run run = ecall(0, &request);

	if (run.function != EEXIT || (request.frame ? request.frame != 1 : request.result != 6))
		wrong_ticks++;
}

/* Handlers that enter the enclave themselves, on the thread that was interrupted inside. */
static void reentering(void)
{
	struct itimerval timer = { { 0, 1000 }, { 0, 1000 } }, never = { 0 };
	int wrong = 0;

	install(SIGALRM, nested_tick, SA_RESTART);
	setitimer(ITIMER_REAL, &timer, NULL);
	for (int i = 0; (i < 300 && inside_ticks < 200) || (i < 30000 && inside_ticks <= 20); i++) {
		struct request request = { .operation = SPIN, .a = 3000000 };
		struct sgx_enclave_run run = ecall(0, &request);

		wrong += run.function != EEXIT || request.result != 0;
	}
	setitimer(ITIMER_REAL, &never, NULL);
	printf("interrupted inside %d, contexts wrong %ld, results wrong %d\n", inside_ticks > 20, wrong_ticks, wrong);
}

static void note(int number, siginfo_t *info, void *context)
{
	greg_t *regs = registers(context);

	last_signal = number;
	last_code = info->si_code;
	last_address = (uint64_t)info->si_addr;
	last_trap = regs[REG_TRAPNO];
	last_error = regs[REG_ERR];
	aep = (void *)regs[REG_RIP];
	if ((uint64_t)regs[REG_RIP] - (uint64_t)base < SIZE || regs[REG_RAX] != ERESUME)
		wrong_ticks++;
}

static void note_and_leave(int number, siginfo_t *info, void *context)
{
	note(number, info, context);
	siglongjmp(back, 1);
}

static const struct {
	const char *name;
	int operation, page;
	uint64_t skip;
} faults[] = {
	{ "ud2", UD2, 0, 2 },
	{ "division", DIVIDE, 0, 2 },
	{ "breakpoint", BREAK, 0, 1 },
	{ "hlt", HALT, 0, 1 },
	{ "system call", CALL, 0, 2 },
	{ "store to code", STORE, CODE, 3 },
	{ "load from a TCS", LOAD, 0, 3 },
	{ "load where nothing is", LOAD, -1, 3 },
	{ "jump to data", JUMP, DATA, 0 },
};
enum { FAULTS = sizeof(faults) / sizeof(*faults) };

static struct request faulting(int which)
{
	struct request request = { .operation = faults[which].operation };
	static void *nowhere;

	if (!nowhere) {
		nowhere = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		munmap(nowhere, PAGE);
	}
	request.a = faults[which].page == -1 ? (uint64_t)nowhere :
					       (uint64_t)base + faults[which].page * PAGE;
	return request;
}

/* By the vDSO an exception is a result; the enclave's own handler then repairs and the thread resumes. */
static void exceptions(void)
{
	for (int i = 0; i < FAULTS; i++) {
		struct request request = faulting(i), handler = { .in_handler = SKIP, .skip = faults[i].skip };

		if (faults[i].operation == BREAK)
			continue;
		struct sgx_enclave_run run = ecall(i % THREADS, &request);

		printf("%s: leaf %u, vector %u, error %#x, address %s", faults[i].name, run.function, run.exception_vector,
		       run.exception_error_code, !run.exception_addr ? "none" : run.exception_addr == (request.a & -PAGE) ? "right" : "wrong");
		if (run.function == EEXIT || !faults[i].skip) {
			printf("\n");
			continue;
		}
		run = ecall(i % THREADS, &handler);
		printf("; handler: leaf %u, frame %lu", run.function, handler.frame);
		run = resume(i % THREADS);
		printf("; resumed: leaf %u, done %d\n", run.function, request.result != 0 || request.operation == CALL);
	}
}

/* By an ENCLU of one's own it is a signal. */
static void signals(void)
{
	static const int numbers[] = { SIGSEGV, SIGILL, SIGBUS, SIGFPE, SIGTRAP, SIGSYS };

	for (int i = 0; i < 6; i++)
		install(numbers[i], note_and_leave, 0);
	for (volatile int i = 0; i < FAULTS; i++) {
		struct request request = faulting(i), handler = { .in_handler = SKIP, .skip = faults[i].skip };

		last_signal = 0;
		if (!sigsetjmp(back, 1))
			raw_enter(&request, tcs(i % THREADS), EENTER);
		printf("%s: signal %d, code %d, trap %d, error %#lx, address %s, at the AEP %d", faults[i].name, last_signal,
		       last_code, last_trap, last_error,
		       last_address == (request.a & -PAGE) ? "right" : last_address == (uint64_t)raw_aep ? "of the AEP" : last_address ? "another" : "none",
		       aep == raw_aep);
		if (!faults[i].skip) {
			printf("\n");
			continue;
		}
		raw_enter(&handler, tcs(i % THREADS), EENTER);
		printf("; handler: frame %lu", handler.frame);
		raw_enter(NULL, tcs(i % THREADS), ERESUME);
		printf("; resumed: done %d\n", request.result != 0 || request.operation == CALL);
	}
	printf("contexts wrong %ld\n", wrong_ticks);
}

static void repair(int number, siginfo_t *info, void *context)
{
	struct request handler = { .in_handler = SKIP, .skip = 2 };

	note(number, info, context);
	raw_enter(&handler, tcs(0), EENTER);
	last_code = handler.frame;
}

/* A handler of the program has the enclave repair itself, and returns to the AEP. */
static void repairing(void)
{
	int done = 0;

	install(SIGILL, repair, 0);
	install(SIGFPE, repair, SA_ONSTACK);
	for (int i = 0; i < 200; i++) {
		struct request request = { .operation = i % 2 ? UD2 : DIVIDE };

		raw_enter(&request, tcs(0), EENTER);
		done += request.result == (i % 2 ? 2 : 6) && last_code == 1;
	}
	printf("%d repaired, contexts wrong %ld\n", done, wrong_ticks);
}

/* Exceptions in the enclave's handlers, until there is no frame left. */
static void nesting(void)
{
	struct request request = { .operation = UD2 }, again = { .in_handler = AGAIN };
	struct sgx_enclave_run run = ecall(0, &request);

	printf("frame %lu: leaf %u, vector %u\n", request.frame, run.function, run.exception_vector);
	for (int i = 0; i < 3; i++) {
		again.frame = 99;
		run = ecall(0, &again);
		printf("frame %lu: leaf %u, vector %u, error %#x\n", again.frame, run.function, run.exception_vector,
		       run.exception_error_code);
	}
	/* No frame is left to repair it from: the instruction raises the same again. */
	run = resume(0);
	printf("resumed: leaf %u, vector %u\n", run.function, run.exception_vector);
}

static int answer_with(long rdi, long rsi, long rdx, long ursp, long r8, long r9, struct sgx_enclave_run *run)
{
	(void)rdi; (void)rsi; (void)rdx; (void)r8; (void)r9;
	(void)ursp;
	ticks++;
	if (run->function == EEXIT)
		return 0;
	struct request handler = { .in_handler = SKIP, .skip = 2 };
	struct sgx_enclave_run inner = { .tcs = run->tcs };

	enter(&handler, EENTER, &inner, vdso_enter, 0);
	return ERESUME;
}

/* A handler given to the vDSO function. */
static void user_handler(void)
{
	for (int i = 0; i < 100; i++) {
		struct request request = { .operation = i % 2 ? UD2 : DIVIDE };
		struct sgx_enclave_run run = { .tcs = tcs(i % THREADS), .user_handler = (uintptr_t)answer_with };

		if (enter(&request, EENTER, &run, vdso_enter, 0) || request.result != (i % 2 ? 2 : 6))
			printf("wrong %d: %lu\n", i, request.result);
	}
	printf("called %ld times\n", ticks);
}

static struct request in_threads[THREADS];
static volatile uint64_t go;

static void *wait_inside(void *argument)
{
	int thread = (intptr_t)argument;

	in_threads[thread].operation = WAIT;
	in_threads[thread].a = (uint64_t)&go;
	return (void *)(intptr_t)ecall(thread, &in_threads[thread]).function;
}

/* Starts threads that wait inside, on the TCSs from 1 on. */
static void send_in(pthread_t *threads, int number)
{
	for (int i = 1; i <= number; i++) {
		pthread_create(&threads[i], NULL, wait_inside, (void *)(intptr_t)i);
		while (!((volatile struct request *)&in_threads[i])->begun)
			usleep(1000);
	}
}

static void fetch_out(pthread_t *threads, int number)
{
	go = 1;
	for (int i = 1; i <= number; i++) {
		void *leaf;

		pthread_join(threads[i], &leaf);
		printf("thread %d: leaf %ld, result %lu\n", i, (long)(intptr_t)leaf, in_threads[i].result);
	}
	go = 0;
}

static void one_tcs(void)
{
	pthread_t threads[THREADS];
	struct request request = { .operation = NOP };

	send_in(threads, 1);
	struct sgx_enclave_run run = ecall(1, &request);

	printf("second on a TCS: leaf %u, vector %u, error %#x\n", run.function, run.exception_vector, run.exception_error_code);
	run = resume(1);
	printf("resume of it: leaf %u, vector %u\n", run.function, run.exception_vector);
	fetch_out(threads, 1);
	printf("afterwards %lu\n", nop(1, 6));
}

static void forking(void)
{
	pthread_t threads[THREADS];
	int status, right = 0;

	send_in(threads, 2);
	for (int i = 0; i < 10; i++) {
		fflush(stdout);
		pid_t child = fork();

		if (!child) {
			struct request put = { .operation = STORE, .a = (uint64_t)base + DATA * PAGE, .b = 1000 + i };
			/* TCS 1 and 2 are busy in the parent, so they are here. */
			struct request busy = { .operation = NOP };
			struct sgx_enclave_run run = ecall(1, &busy);

			ecall(3, &put);
			_exit(nop(0, i) == (uint64_t)i + 1 && put.result == 4 && run.function == EENTER && run.exception_vector == 13);
		}
		waitpid(child, &status, 0);
		struct request get = { .operation = LOAD, .a = (uint64_t)base + DATA * PAGE };

		ecall(0, &get);
		right += WIFEXITED(status) && WEXITSTATUS(status) == 1 && get.result == 1000u + i;
	}
	printf("%d children right\n", right);
	fetch_out(threads, 2);
}

static void spawning(void)
{
	pthread_t threads[THREADS];
	volatile int right = 0;
	int status;
	char *arguments[] = { "true", NULL };
	char *environment[] = { NULL };

	send_in(threads, 3);
	for (int i = 0; i < 10; i++) {
		pid_t child;

		if (i % 2) {
			if (posix_spawn(&child, "/bin/true", NULL, NULL, arguments, environment))
				continue;
		} else {
			child = vfork();
			if (!child) {
				execve("/bin/true", arguments, environment);
				_exit(9);
			}
		}
		waitpid(child, &status, 0);
		right += status == 0 && nop(0, 3) == 4;
	}
	printf("%d spawned\n", right);
	fetch_out(threads, 3);
}

/* Ends of all kinds while three threads are inside. */
static void *exec_now(void *unused)
{
	execl("/bin/sh", "sh", "-c", "exit 21", (char *)NULL);
	return unused;
}

static void ends(void)
{
	static const char *const names[] = { "exit", "_exit", "SIGKILL", "SIGTERM", "exec", "exec from a thread", "first thread ends" };
	pthread_t threads[THREADS], thread;

	for (int way = 0; way < 7; way++) {
		int status;

		fflush(stdout);
		pid_t child = fork();

		if (!child) {
			build();
			send_in(threads, 3);
			switch (way) {
			case 0: exit(20);
			case 1: _exit(20);
			case 2: kill(getpid(), SIGKILL); break;
			case 3: kill(getpid(), SIGTERM); break;
			case 4: exec_now(NULL); break;
			case 5:
				pthread_create(&thread, NULL, exec_now, NULL);
				pthread_join(thread, NULL);
				break;
			default:
				/* The last to leave ends the process. */
				go = 1;
				pthread_exit(NULL);
			}
			pause();
			_exit(99);
		}
		waitpid(child, &status, 0);
		printf("%s: status %#x\n", names[way], status);
	}
	printf("still here %lu\n", nop(0, 1));
}

static volatile int cleaned;

static void clean(void *unused)
{
	(void)unused;
	cleaned++;
}

static void *cancelled_inside(void *argument)
{
	void *result;

	pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, NULL);
	pthread_cleanup_push(clean, NULL);
	result = wait_inside(argument);
	pthread_cleanup_pop(0);
	return result;
}

/* A thread that is cancelled inside leaves; its TCS stays interrupted. */
static void cancelling(void)
{
	pthread_t thread;
	void *result;

	in_threads[1].begun = 0;
	pthread_create(&thread, NULL, cancelled_inside, (void *)1);
	while (!((volatile struct request *)&in_threads[1])->begun)
		usleep(1000);
	pthread_cancel(thread);
	pthread_join(thread, &result);
	printf("cancelled %d, cleaned up %d\n", result == PTHREAD_CANCELED, cleaned);
	struct request request = { .operation = NOP };
	struct sgx_enclave_run run = ecall(1, &request);

	printf("entered: leaf %u, frame %lu\n", run.function, request.frame);
}

static void jump_out(int number, siginfo_t *info, void *context)
{
	tick(number, info, context);
	siglongjmp(back, 1);
}

/* A handler that jumps out of an ECALL; somebody else resumes what it left. */
static void jumping(void)
{
	struct request request = { .operation = WAIT, .a = (uint64_t)&go };
	struct itimerval soon = { { 0, 0 }, { 0, 20000 } };
	volatile int right = 0;

	install(SIGALRM, jump_out, 0);
	for (volatile int i = 0; i < 20;) {
		const volatile long before = inside_ticks;

		go = 0;
		request.result = 0;
		if (!sigsetjmp(back, 1)) {
			setitimer(ITIMER_REAL, &soon, NULL);
			ecall(0, &request);
		}
		go = 1;
		/* On a slow machine the signal may come before the thread is inside. */
		if (inside_ticks == before)
			continue;
		struct sgx_enclave_run run = resume(0);

		right += run.function == EEXIT && request.result == 10;
		i++;
	}
	printf("%d jumped out of and resumed, contexts wrong %ld\n", right, wrong_ticks);
}

/* All ways of being signalled by somebody else while inside. */
static void signalled(void)
{
	static const int numbers[] = { SIGUSR1, SIGSEGV, SIGILL, SIGBUS, SIGTRAP, SIGFPE, SIGSYS, SIGURG };
	pthread_t threads[THREADS];

	for (int i = 0; i < 8; i++)
		install(numbers[i], tick, 0);
	send_in(threads, 3);
	for (int i = 0; i < 8; i++)
		for (int k = 0; k < 30; k++) {
			pthread_kill(threads[1 + k % 3], numbers[i]);
			if (k % 10 == 9)
				usleep(2000);
		}
	for (int k = 0; k < 20; k++)
		kill(getpid(), numbers[k % 8]);
	/* Some of them by now, all of them at some time. */
	for (int i = 0; i < 60000 && inside_ticks <= 2; i++)
		usleep(1000);
	printf("handled inside %d, contexts wrong %ld\n", inside_ticks > 2, wrong_ticks);
	fetch_out(threads, 3);
}

static void stopping(void)
{
	pthread_t threads[THREADS];
	int status;

	fflush(stdout);
	pid_t child = fork();

	if (!child) {
		build();
		send_in(threads, 3);
		for (int i = 0; i < 3; i++) {
			kill(getpid(), SIGSTOP);
			struct request request = { .operation = SPIN, .a = 1000000 };

			ecall(0, &request);
			if (request.result)
				_exit(98);
		}
		go = 1;
		for (int i = 1; i <= 3; i++) {
			pthread_join(threads[i], NULL);
			if (in_threads[i].result != 10)
				_exit(97);
		}
		_exit(30);
	}
	for (int i = 0; i < 3; i++) {
		waitpid(child, &status, WUNTRACED);
		printf("stopped %d\n", WIFSTOPPED(status));
		usleep(20000);
		kill(child, SIGCONT);
	}
	waitpid(child, &status, 0);
	printf("ended with %d\n", WEXITSTATUS(status));
}

static void wide(void)
{
	if (!__builtin_cpu_supports("avx2")) {
		printf("kept\n");
		return;
	}
	set_timer(SIGALRM, 1000);
	for (int i = 0; i < 200 && inside_ticks < 100; i++) {
		struct request request = { .operation = WIDE, .a = 3000000, .b = 11, .in_handler = 33, .skip = 44 };

		/* The bytes from `b` on: the third word is where the upper half begins. */
		ecall(0, &request);
		if (request.result != 33)
			printf("upper half %lu\n", request.result);
	}
	set_timer(SIGALRM, 0);
	printf("kept\n");
}

static void deadly(void)
{
	sigset_t set;

	for (volatile int way = 0; way < 3; way++) {
		int status;

		fflush(stdout);
		pid_t child = fork();

		if (!child) {
			struct request request = { .operation = UD2 };

			install(SIGILL, note_and_leave, 0);
			if (way == 1) {
				sigfillset(&set);
				sigprocmask(SIG_SETMASK, &set, NULL);
			}
			if (way == 2)
				signal(SIGILL, SIG_IGN);
			if (!sigsetjmp(back, 1))
				raw_enter(&request, tcs(way), EENTER);
			_exit(40);
		}
		waitpid(child, &status, 0);
		printf("%s: status %#x\n", ((const char *[]){ "handled", "blocked", "ignored" })[way], status);
	}
}

/* An enclave's descriptor, sent to another process, which maps it and uses the enclave. */
static void passed(void)
{
	int pair[2], status;

	if (socketpair(AF_UNIX, SOCK_DGRAM, 0, pair))
		exit(98);
	fflush(stdout);
	pid_t child = fork();

	if (!child) {
		struct request get = { .operation = LOAD };
		uint64_t place;

		int file = receive_file(pair[1]);

		if (recv(pair[1], &place, sizeof(place), 0) != sizeof(place))
			_exit(98);
		/* The same place: an enclave lies where it was created. */
		base = (uint8_t *)place;
		map_pages(&plan, base, file);
		close(file);
		get.a = place + (DATA + 2) * PAGE + 16;
		ecall(0, &get);
		printf("read %#lx, %lu\n", get.result, nop(3, 7));
		fflush(stdout);
		_exit(0);
	}
	/* Built after the fork, so that the child knows nothing of it. */
	build();
	send_file(pair[0], device);
	uint64_t place = (uint64_t)base;

	if (send(pair[0], &place, sizeof(place), 0) != sizeof(place))
		exit(98);
	waitpid(child, &status, 0);
	printf("child %#x, mine %lu\n", status, nop(0, 8));
}

/* Without any descriptor an enclave lives as long as its mapping. */
static void closing(void)
{
	printf("close %d\n", close_range(3, ~0U, 0));
	printf("%lu\n", nop(0, 1));
	closefrom(3);
	for (int i = 3; i < 5000; i++)
		close(i);
	printf("%lu\n", nop(1, 2));
	fflush(stdout);
	pid_t child = fork();

	if (!child) {
		printf("in a child %lu\n", nop(2, 3));
		fflush(stdout);
		_exit(0);
	}
	waitpid(child, NULL, 0);
	build();
	printf("another %lu\n", nop(3, 4));
}

static void *fire(void *target)
{
	while (!go) {
		pthread_kill(*(pthread_t *)target, SIGUSR1);
		usleep(300);
	}
	return NULL;
}

static void *work(void *argument)
{
	int thread = (intptr_t)argument;
	intptr_t wrong = 0;

	for (int i = 0; i < 3000; i++) {
		struct request request = { .operation = SPIN, .a = 20000 };

		ecall(thread, &request);
		wrong += request.result != 0 || nop(thread, i) != (uint64_t)i + 1;
	}
	return (void *)wrong;
}

/* Four threads inside, each under fire by one outside. */
static void crowd(void)
{
	pthread_t workers[THREADS], shooters[THREADS];
	intptr_t wrong = 0;

	install(SIGUSR1, tick, SA_RESTART);
	for (intptr_t i = 0; i < THREADS; i++) {
		pthread_create(&workers[i], NULL, work, (void *)i);
		pthread_create(&shooters[i], NULL, fire, &workers[i]);
	}
	/* Shooters stop before the workers are joined, for their handles end with that. */
	usleep(1500000);
	go = 1;
	for (int i = 0; i < THREADS; i++)
		pthread_join(shooters[i], NULL);
	for (int i = 0; i < THREADS; i++) {
		void *result;

		pthread_join(workers[i], &result);
		wrong += (intptr_t)result;
	}
	printf("results wrong %ld, contexts wrong %ld\n", (long)wrong, wrong_ticks);
}

static volatile int round_number, ended;

static void end(int number, siginfo_t *info, void *context)
{
	tick(number, info, context);
	ended = 1;
}

/* For a debugger's breakpoint. */
__attribute__((noinline)) void between(void)
{
	round_number++;
	__asm__ volatile("");
}

/* Works until SIGTERM. */
static void debugged(void)
{
	int wrong = 0;

	install(SIGTERM, end, 0);
	printf("ready\n");
	for (uint64_t i = 0; !ended; i++) {
		struct request request = { .operation = SPIN, .a = 300000 };

		ecall(0, &request);
		wrong += request.result != 0 || nop(1, i) != i + 1;
		between();
	}
	printf("wrong %d\n", wrong);
}

static volatile long strange;
static char *volatile program_fs;

/* A handler that is called anywhere in an ECALL: outside, or just left by an asynchronous exit. Never in between. */
static void judge(int number, siginfo_t *info, void *context)
{
	greg_t *regs = registers(context);
	int left_inside = regs[REG_RAX] == ERESUME && (uint64_t)regs[REG_RBX] - (uint64_t)base < SIZE &&
			  regs[REG_RIP] == regs[REG_RCX];
	char *fs = __builtin_thread_pointer();

	tick(number, info, context);
	strange += fs != program_fs;
	/* The thread can be entered: at the frame above the interrupted one, or as if it had never been. */
	struct request request = { .operation = NOP, .a = 7 };
	struct sgx_enclave_run run = visit(0, &request, EENTER);

	if (run.function != EEXIT || (request.frame == 0) != (request.result == 8))
		strange++;
	else if (debug ? left_inside && !request.frame : left_inside ? request.frame != 1 : request.frame != 0 || request.result != 8)
		strange++;
}

__attribute__((noinline)) void round_begins(void)
{
	__asm__ volatile("");
}

__attribute__((noinline)) void round_ends(void)
{
	__asm__ volatile("");
}

/* Rounds for `stepper`, until SIGTERM; of a debug enclave, with an exception, its repair and a resume in each. */
static void stepped(void)
{
	int wrong = 0;

	program_fs = __builtin_thread_pointer();
	install(SIGTERM, end, 0);
	install(SIGUSR1, judge, 0);
	nop(0, 0);
	printf("%#lx %#lx %#lx %#x\n", (long)round_begins, (long)round_ends, (long)base, SIZE);
	while (!ended) {
		struct request request = { .operation = debug ? UD2 : NOP, .a = 1 };
		struct sgx_enclave_run run = { .tcs = tcs(0), .user_handler = debug ? (uintptr_t)answer_with : 0 };

		round_begins();
		int result = enter(&request, EENTER, &run, vdso_enter, 0);

		round_ends();
		wrong += result || run.function != EEXIT || request.result != 2;
	}
	printf("handled %d, inside %d, results wrong %d, contexts wrong %ld, in between %ld\n", ticks > 100, debug || inside_ticks > 0,
	       wrong, wrong_ticks, strange);
}

/* What debuggers get: a number of bytes, or why not. */
static const char *outcome(long result)
{
	static char number[32];

	if (result < 0)
		return strerrorname_np(errno);
	snprintf(number, sizeof(number), "%ld", result);
	return number;
}

static uint64_t load(uint64_t address)
{
	struct request request = { .operation = LOAD, .a = address };

	ecall(0, &request);
	return request.result;
}

static uint64_t data_at(int page)
{
	return (uint64_t)base + (DATA + page) * PAGE;
}

/* The first word of each page is its own. */
static void peek_words(int memory)
{
	int right = 0;
	long length = 0;

	for (int page = 0; page < DATA_PAGES; page++) {
		uint64_t word = 0;

		length = pread(memory, &word, sizeof(word), data_at(page) + 8);
		right += word == ((uint64_t)page << 32 | 8);
	}
	printf("words: %s, right %d\n", outcome(length), right);
}

/* Where an exception has left a thread is in its TCS and SSA: the debugger looks, and moves it on. */
static void peek_thread(int memory)
{
	const uint64_t frame = (uint64_t)base + (SSA + 2 * FRAMES) * PAGE + PAGE - 184;
	struct request request = { .operation = UD2 };
	struct sgx_enclave_run run = visit(2, &request, EENTER);
	uint32_t cssa = 99;
	uint64_t rip = 0;
	long length = pread(memory, &cssa, sizeof(cssa), tcs(2) + 24);

	printf("CSSA: %s, %u\n", outcome(length), cssa);
	length = pread(memory, &rip, sizeof(rip), frame + 136);
	printf("RIP: %s, in the code %d\n", outcome(length), rip - (uint64_t)base - CODE * PAGE < PAGE);
	rip += 2;
	length = pwrite(memory, &rip, sizeof(rip), frame + 136);
	run = visit(2, &request, ERESUME);
	printf("moved on: %s, leaf %u, result %lu\n", outcome(length), run.function, request.result);
}

static void peek_tcs(int memory)
{
	const uint64_t optin = 1;
	uint64_t word = 99;
	long length = pwrite(memory, &optin, sizeof(optin), tcs(3) + 8);

	printf("DBGOPTIN: %s", outcome(length));
	length = pread(memory, &word, sizeof(word), tcs(3) + 8);
	printf(", %s, %lu\n", outcome(length), word);
	printf("OENTRY: %s", outcome(pwrite(memory, &optin, sizeof(optin), tcs(3) + 32)));
	printf(", reserved: %s\n", outcome(pread(memory, &word, sizeof(word), tcs(3) + 72)));
	printf("still works: %lu\n", nop(3, 1));
}

/* By process_vm_readv and process_vm_writev, which know no enclaves: what is in front of one is moved. */
static void peek_vm(void)
{
	uint64_t words[3] = { 0 }, own[2] = { 77, 78 };
	struct iovec here = { words, sizeof(words) };
	struct iovec there[3] = { { &own[0], 8 }, { (void *)data_at(1), 8 }, { &own[1], 8 } };

	printf("vm: %s", outcome(process_vm_readv(getpid(), &here, 1, there + 1, 1, 0)));
	printf(", with something in front %s", outcome(process_vm_readv(getpid(), &here, 1, there, 3, 0)));
	printf(", %lu %lu", words[0], words[1]);
	there[1] = there[2];
	printf(", without %s", outcome(process_vm_readv(getpid(), &here, 1, there, 2, 0)));
	printf(", written %s\n", outcome(process_vm_writev(getpid(), &here, 1, &(struct iovec){ (void *)data_at(1), 8 }, 1, 0)));
}

/* By /proc/PID/mem. */
static void peek_file(void)
{
	static uint8_t bytes[3 * PAGE];
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/task/%d/mem", getpid(), gettid());
	int memory = open(path, O_RDWR | O_CLOEXEC);

	peek_words(memory);
	printf("long: %s", outcome(pread(memory, bytes, sizeof(bytes), data_at(2))));
	printf(", right %d\n", !memcmp(bytes, contents[DATA + 2], sizeof(bytes)));
	printf("code: %s", outcome(pread(memory, bytes, 16, (uint64_t)base + CODE * PAGE)));
	printf(", right %d", !memcmp(bytes, enclave_start, 16));
	printf(", written %s\n", outcome(pwrite(memory, enclave_start, 16, (uint64_t)base + CODE * PAGE)));
	printf("five bytes: %s", outcome(pwrite(memory, "abcde", 5, data_at(1) - 3)));
	printf(", changed %d\n", load(data_at(1) - 8) >> 40 == 0x636261 && (load(data_at(1)) & 0xffffff) == 0x6564);

	struct iovec pair[2] = { { bytes, 8 }, { bytes + 8, 8 } };

	lseek(memory, data_at(3), SEEK_SET);
	printf("vector: %s", outcome(readv(memory, pair, 2)));
	printf(", then at %ld", (long)(lseek(memory, 0, SEEK_CUR) - data_at(3)));
	printf(", %s", outcome(write(memory, bytes, 8)));
	printf(", then at %ld\n", (long)(lseek(memory, 0, SEEK_CUR) - data_at(3)));
	/* What is no enclave's is as ever. */
	uint64_t word = 0, own = 77;

	printf("own: %s", outcome(pread(memory, &word, sizeof(word), (uintptr_t)&own)));
	printf(", %lu, nothing there: %s\n", word, outcome(pread(memory, &word, sizeof(word), 16)));
	peek_vm();
	peek_tcs(memory);
	peek_thread(memory);
	close(memory);
}

/* By ptrace, in a child. */
static int peek_parent(pid_t parent)
{
	int right = 0, moved = 0, status;
	uint64_t word;

	errno = 0;
	word = ptrace(PTRACE_PEEKDATA, parent, data_at(4) + 8, 0);
	printf("not traced: %s\n", strerrorname_np(errno));
	if (ptrace(PTRACE_SEIZE, parent, 0, 0) || ptrace(PTRACE_INTERRUPT, parent, 0, 0) ||
	    waitpid(parent, &status, __WALL) != parent)
		return 98;
	for (int page = 0; page < DATA_PAGES; page++) {
		errno = 0;
		word = ptrace(PTRACE_PEEKDATA, parent, data_at(page) + 8, 0);
		moved += !errno;
		right += word == ((uint64_t)page << 32 | 8);
	}
	printf("peek: %s, %d, right %d", strerrorname_np(errno), moved, right);
	printf("; poke: %s\n", outcome(ptrace(PTRACE_POKEDATA, parent, data_at(5) + 16, 5L)));
	errno = 0;
	word = ptrace(PTRACE_PEEKTEXT, parent, tcs(3) + 8, 0);
	printf("peek of a TCS: %s", strerrorname_np(errno));
	errno = 0;
	word = ptrace(PTRACE_PEEKTEXT, parent, 16, 0);
	printf(", of nothing: %s\n", strerrorname_np(errno));
	ptrace(PTRACE_DETACH, parent, 0, 0);
	return 0;
}

/* What debuggers read and write of a debug enclave, and not of another. */
static void peeking(void)
{
	int status;

	peek_file();
	prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY);
	fflush(stdout);
	pid_t parent = getpid(), child = fork();

	if (!child) {
		int code = peek_parent(parent);

		fflush(stdout);
		_exit(code);
	}
	while (waitpid(child, &status, 0) < 0)
		;
	printf("poked %d, status %#x\n", load(data_at(5) + 16) == 5, status);
}

int main(int argc, char **argv)
{
	static const struct mode modes[] = {
		{ "ticking", ticking },	    { "ticking-raw", ticking_raw }, { "visiting", visiting },
		{ "reentering", reentering }, { "exceptions", exceptions }, { "signals", signals },
		{ "repairing", repairing }, { "nesting", nesting },	    { "user-handler", user_handler },
		{ "one-tcs", one_tcs },	    { "forking", forking },	    { "spawning", spawning },
		{ "ends", ends },	    { "cancelling", cancelling },   { "jumping", jumping },
		{ "signalled", signalled }, { "stopping", stopping },	    { "wide", wide },
		{ "deadly", deadly },	    { "passed", passed },	    { "closing", closing },
		{ "crowd", crowd },	    { "debugged", debugged },   { "stepped", stepped },	    { "peeking", peeking },
	};

	setvbuf(stdout, NULL, _IOLBF, 0);
	self_path = argv[0];
	key_path = argc > 1 ? argv[1] : "";
	debug = argc > 3;
	vdso_enter = find_in_vdso("__vdso_sgx_enter_enclave");
	const char *name = argc > 2 ? argv[2] : NULL;
	const struct mode *mode = find_mode(modes, COUNT(modes), name);

	if (mode) {
		if (!vdso_enter)
			fail(2, "no SGX here");
		if (mode->run == wide)
			plan.xfrm = 7;
		build();
	}
	return run_mode(modes, COUNT(modes), name);
}
