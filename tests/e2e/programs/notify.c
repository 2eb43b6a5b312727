/*
 * An enclave that wants to be told when it was left (AEX-Notify): ERESUME then enters it on the next SSA frame, where a
 * handler looks at what happened, goes back a frame with EDECCSSA and goes on as the interrupted code.
 *
 *   notify KEY told|untold    with the attribute; asks to be told, or does not
 *   notify KEY growing        grows, and counts its own page faults that way
 *   notify KEY plain          an enclave without the attribute, whose handler also ends with EDECCSSA
 *
 * The handler does what Intel's description of AEX-Notify has a handler do: it puts the interrupted state on the
 * interrupted stack, turns notifications off, executes EDECCSSA, turns them on again, and returns to that state.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <sys/time.h>
#include <ucontext.h>

#include "build.h"
#include "entry.h"

enum {
	EENTER = 2,
	ERESUME = 3,
	EEXIT = 4,
	/* Threads: one with enough frames, one with a single frame, one whose TCS does not agree with the enclave. */
	FRAMED = 0,
	CRAMPED = 1,
	DISAGREEING = 2,
	THREADS = 3,
	FRAMES = 3,
	/* Pages. Each thread has one of its own: what the enclave keeps, and its stack. FS begins with the first frame. */
	SSA = THREADS,
	OWN = SSA + THREADS * FRAMES,
	CODE = OWN + THREADS,
	PAGES = CODE + 1,
	SIZE = 32 * PAGE,
	MODE64BIT = 4,
	AEXNOTIFY = 1 << 10,
	EXINFO = 1,
	/* Operations. */
	NOP = 0,
	SPIN = 1,
	UD2 = 2,
	DECREMENT = 3,
	ACCEPT = 4,
};

struct request {
	uint64_t operation, stack, told, a, secinfo, result;
	volatile uint64_t begun, stop;
	/* What the handler has seen: how often it ran, and the last time. */
	uint64_t handled, frame, exit_info, address, error;
	/* How many rounds the handler spins. */
	uint64_t linger;
};

extern const uint8_t enclave_start[], enclave_end[];
__asm__(".pushsection .rodata\n"
	".set .Lgpr, 4096 - 184\n"
	".set .Ltold, .Lgpr + 167\n"
	"enclave_start:\n"
	"	test %eax, %eax\n"
	"	jnz 80f\n"
	"	mov %rsp, %gs:0\n"
	"	mov %rbp, %gs:8\n"
	"	mov %rcx, %gs:16\n"
	"	mov %rdi, %gs:24\n"
	"	mov 8(%rdi), %rsp\n"
	"	mov 104(%rdi), %rax\n"
	"	mov %rax, %gs:72\n"
	"	xor %eax, %eax\n"
	"	mov %rax, %gs:32\n"
	"	mov %rax, %gs:40\n"
	"	mov %rax, %gs:48\n"
	"	mov %rax, %gs:56\n"
	"	mov %rax, %gs:64\n"
	"	mov 16(%rdi), %al\n"
	"	mov %al, %fs:.Ltold\n"
	"	mov (%rdi), %rax\n"
	"	cmp $1, %rax\n"
	"	je 1f\n"
	"	cmp $2, %rax\n"
	"	je 2f\n"
	"	cmp $3, %rax\n"
	"	je 3f\n"
	"	cmp $4, %rax\n"
	"	je 4f\n"
	"	xor %ebx, %ebx\n"
	/* Leaves, with RBX as the result. */
	"90:	movb $0, %fs:.Ltold\n"
	"	mov %gs:24, %rdi\n"
	"	mov %rbx, 40(%rdi)\n"
	"	mov %gs:32, %rax\n"
	"	mov %rax, 64(%rdi)\n"
	"	mov %gs:40, %rax\n"
	"	mov %rax, 72(%rdi)\n"
	"	mov %gs:48, %rax\n"
	"	mov %rax, 80(%rdi)\n"
	"	mov %gs:56, %rax\n"
	"	mov %rax, 88(%rdi)\n"
	"	mov %gs:64, %rax\n"
	"	mov %rax, 96(%rdi)\n"
	"	mov %gs:0, %rsp\n"
	"	mov %gs:8, %rbp\n"
	"	mov %gs:16, %rbx\n"
	"	mov $4, %eax\n"
	"	enclu\n"
	"	ud2\n"
	/* Spins with something in every register, and looks whether it still is there. */
	"1:	mov $0x1111, %r8d\n"
	"	mov $0x2222, %r9d\n"
	"	mov $0x3333, %r10d\n"
	"	mov $0x4444, %r11d\n"
	"	mov $0x5555, %r12d\n"
	"	mov $0x6666, %r13d\n"
	"	mov $0x7777, %r14d\n"
	"	mov $0x8888, %r15d\n"
	"	mov $0x9999, %ebp\n"
	"	mov $0xaaaa, %edx\n"
	"	mov $0xbbbb, %esi\n"
	"	movq %r8, %xmm0\n"
	"	movq %r15, %xmm15\n"
	"	fldpi\n"
	"	mov %rsp, %rcx\n"
	"	movq $0x5eed, -8(%rsp)\n"
	"	std\n"
	"	movq $1, 48(%rdi)\n"
	"20:	cmpq $0, 56(%rdi)\n"
	"	je 20b\n"
	"	cld\n"
	"	lea -0x1111(%r8), %rbx\n"
	"	sub $0x2222, %r9\n"
	"	or %r9, %rbx\n"
	"	sub $0x3333, %r10\n"
	"	or %r10, %rbx\n"
	"	sub $0x4444, %r11\n"
	"	or %r11, %rbx\n"
	"	sub $0x5555, %r12\n"
	"	or %r12, %rbx\n"
	"	sub $0x6666, %r13\n"
	"	or %r13, %rbx\n"
	"	sub $0x7777, %r14\n"
	"	or %r14, %rbx\n"
	"	sub $0x9999, %rbp\n"
	"	or %rbp, %rbx\n"
	"	sub $0xaaaa, %rdx\n"
	"	or %rdx, %rbx\n"
	"	sub $0xbbbb, %rsi\n"
	"	or %rsi, %rbx\n"
	"	sub %rsp, %rcx\n"
	"	or %rcx, %rbx\n"
	"	movq %xmm0, %rax\n"
	"	sub %r8, %rax\n"
	"	or %rax, %rbx\n"
	"	movq %xmm15, %rax\n"
	"	sub %r15, %rax\n"
	"	or %rax, %rbx\n"
	/* The red zone is the interrupted code's. */
	"	mov -8(%rsp), %rax\n"
	"	sub $0x5eed, %rax\n"
	"	or %rax, %rbx\n"
	"	fldpi\n"
	"	fcomip %st(1), %st\n"
	"	fstp %st(0)\n"
	"	je 90b\n"
	"	or $0x40000000, %rbx\n"
	"	jmp 90b\n"
	"2:	ud2\n"
	"	mov $2, %ebx\n"
	"	jmp 90b\n"
	"3:	mov $9, %eax\n"
	"	enclu\n"
	"	mov %rax, %rbx\n"
	"	jmp 90b\n"
	"4:	mov 24(%rdi), %rcx\n"
	"	mov 32(%rdi), %rbx\n"
	"	movq $0x20b, (%rbx)\n"
	"	mov $5, %eax\n"
	"	enclu\n"
	"	mov %rax, %rbx\n"
	"	jmp 90b\n"
	/* The handler, on frame EAX. Every register is its own; RSP is the outside's, and not used. */
	"80:	mov %rax, %gs:40\n"
	"	incq %gs:32\n"
	"	mov %fs:.Lgpr + 160, %eax\n"
	"	mov %rax, %gs:48\n"
	"	mov %fs:.Lgpr - 16, %rcx\n"
	"	mov %rcx, %gs:56\n"
	"	mov %fs:.Lgpr - 8, %ecx\n"
	"	mov %rcx, %gs:64\n"
	"	mov %gs:72, %rcx\n"
	"81:	dec %rcx\n"
	"	jns 81b\n"
	/* Over an instruction that can never be executed: UD2, and ENCLU where it raises #GP. */
	"	xor %ecx, %ecx\n"
	"	cmp $0x80000306, %eax\n"
	"	jne 82f\n"
	"	mov $2, %ecx\n"
	"82:	cmp $0x8000030d, %eax\n"
	"	jne 83f\n"
	"	mov $3, %ecx\n"
	"83:	add %rcx, %fs:.Lgpr + 136\n"
	"	mov $3, %eax\n"
	"	xor %edx, %edx\n"
	"	xrstor64 %fs:0\n"
	"	mov %fs:.Lgpr + 32, %rsp\n"
	"	lea -128(%rsp), %rsp\n"
	"	pushq %fs:.Lgpr + 136\n"
	"	pushq %fs:.Lgpr + 128\n"
	"	pushq %fs:.Lgpr\n"
	"	pushq %fs:.Lgpr + 8\n"
	"	pushq %fs:.Lgpr + 16\n"
	"	pushq %fs:.Lgpr + 24\n"
	"	pushq %fs:.Lgpr + 40\n"
	"	pushq %fs:.Lgpr + 48\n"
	"	pushq %fs:.Lgpr + 56\n"
	"	pushq %fs:.Lgpr + 64\n"
	"	pushq %fs:.Lgpr + 72\n"
	"	pushq %fs:.Lgpr + 80\n"
	"	pushq %fs:.Lgpr + 88\n"
	"	pushq %fs:.Lgpr + 96\n"
	"	pushq %fs:.Lgpr + 104\n"
	"	pushq %fs:.Lgpr + 112\n"
	"	pushq %fs:.Lgpr + 120\n"
	"	mov %fs:.Ltold, %cl\n"
	"	movb $0, %fs:.Ltold\n"
	"	mov $9, %eax\n"
	"	enclu\n"
	"	mov %cl, %fs:.Ltold\n"
	"	pop %r15\n"
	"	pop %r14\n"
	"	pop %r13\n"
	"	pop %r12\n"
	"	pop %r11\n"
	"	pop %r10\n"
	"	pop %r9\n"
	"	pop %r8\n"
	"	pop %rdi\n"
	"	pop %rsi\n"
	"	pop %rbp\n"
	"	pop %rbx\n"
	"	pop %rdx\n"
	"	pop %rcx\n"
	"	pop %rax\n"
	"	popfq\n"
	"	ret $128\n"
	"enclave_end:\n"
	".popsection\n");

static uint8_t *base;
static const void *vdso_enter;
static int device, told, attribute;
static uint8_t contents[PAGES][PAGE] __attribute__((aligned(PAGE)));

static uint64_t page_flags(int page)
{
	if (page < SSA)
		return SECINFO_TCS;
	return SECINFO_REG | (page == CODE ? PROT_READ | PROT_EXEC : PROT_READ | PROT_WRITE);
}

static void build(const char *key)
{
	struct blueprint plan = {
		.key = key, .pages = PAGES, .size = SIZE, .attributes = MODE64BIT | (attribute ? AEXNOTIFY : 0), .xfrm = 3,
		.miscselect = EXINFO, .contents = contents, .flags = page_flags,
	};

	for (int i = 0; i < THREADS; i++) {
		const uint64_t ssa = (SSA + i * FRAMES) * PAGE;

		lay_out_tcs(contents[i], ssa, i == CRAMPED ? 1 : FRAMES, CODE * PAGE, ssa, (OWN + i) * PAGE);
		/* FLAGS.AEXNOTIFY */
		contents[i][8] = (i == DISAGREEING) != attribute ? 2 : 0;
	}
	memcpy(contents[CODE], enclave_start, enclave_end - enclave_start);
	base = build_enclave(&plan, &device);
}

/* From one place, so that what one call has left interrupted can be gone on with by another. */
static __attribute__((noinline)) struct sgx_enclave_run visit(int thread, struct request *request, unsigned leaf)
{
	struct sgx_enclave_run run = { .tcs = (uintptr_t)base + thread * PAGE };
	int result = enter(request, leaf, &run, vdso_enter, 0);

	if (result)
		fail(3, "the vDSO function returned %d", result);
	return run;
}

static struct request asking(int thread, uint64_t operation)
{
	return (struct request){
		.operation = operation, .stack = (uintptr_t)base + (OWN + thread + 1) * PAGE, .told = told,
		.secinfo = (uintptr_t)base + (OWN + thread) * PAGE + 192,
	};
}

static void print_handled(const char *what, const struct request *request)
{
	printf("%s: result %ld, handled %ld", what, request->result, request->handled);
	if (request->handled)
		printf(", frame %ld, exit %#lx", request->frame, request->exit_info);
	printf("\n");
}

/* An exception that ERESUME alone mends if the enclave is told, and otherwise an EENTER. */
static void exception(const char *what, uint64_t operation)
{
	struct request request = asking(FRAMED, operation);
	struct sgx_enclave_run run = visit(FRAMED, &request, EENTER);

	printf("%s: leaf %u, vector %u\n", what, run.function, run.exception_vector);
	run = visit(FRAMED, NULL, ERESUME);
	if (!told)
		printf("again: leaf %u, vector %u\n", run.function, run.exception_vector), run = visit(FRAMED, NULL, EENTER);
	if (run.function == EEXIT)
		print_handled(what, &request);
	else
		printf("in the handler: leaf %u, vector %u\n", run.function, run.exception_vector);
}

/* EACCEPT of a page that is not there yet: the kernel adds it, and nobody outside sees the exit. */
static struct request accept_page(int page)
{
	struct request request = asking(FRAMED, ACCEPT);

	request.a = (uintptr_t)base + page * PAGE;
	if (mmap((void *)request.a, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, device, 0) == MAP_FAILED)
		fail(2, "map: %s", strerror(errno));
	struct sgx_enclave_run run = visit(FRAMED, &request, EENTER);

	if (run.function != EEXIT)
		fail(3, "page %d: vector %u, error %#x", page, run.exception_vector, run.exception_error_code);
	return request;
}

static void accepting(void)
{
	struct request request = accept_page(PAGES);

	print_handled("accept", &request);
	if (request.handled)
		printf("address right %d, error %#lx\n", request.address == request.a, request.error);
}

static void growing(void)
{
	uint64_t wrong = 0, faults = 0;

	for (int page = PAGES; page < SIZE / PAGE; page++) {
		struct request request = accept_page(page);

		wrong |= request.result;
		faults += request.handled;
	}
	printf("%d pages accepted, wrong %lu, faults %lu\n", SIZE / PAGE - PAGES, wrong, faults);
}

static void misfits(void)
{
	struct request request = asking(CRAMPED, UD2);
	struct sgx_enclave_run run = visit(CRAMPED, &request, EENTER);

	printf("one frame: leaf %u, vector %u", run.function, run.exception_vector);
	run = visit(CRAMPED, NULL, ERESUME);
	printf("; resumed: leaf %u, vector %u\n", run.function, run.exception_vector);
	request = asking(DISAGREEING, NOP);
	run = visit(DISAGREEING, &request, EENTER);
	printf("disagreeing: leaf %u, vector %u\n", run.function, run.exception_vector);
}

static volatile sig_atomic_t ticks, inside;
static struct request *spinning;
static volatile int wanted;

static void tick(int number, siginfo_t *info, void *context)
{
	const greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;

	(void)number, (void)info;
	ticks++;
	if (registers[REG_RAX] == ERESUME && (uint8_t *)registers[REG_RBX] == base)
		inside++;
	/* However slow the computer: it was left so often, or a minute has gone by. */
	if (inside >= wanted || ticks > 60000)
		spinning->stop = 1;
}

/* Is interrupted by a timer again and again, in its work and, where that takes long, in its handler. */
static void ticking(uint64_t linger)
{
	const struct sigaction action = { .sa_sigaction = tick, .sa_flags = SA_SIGINFO | SA_RESTART };
	const struct itimerval on = { { 0, 1000 }, { 0, 1000 } }, off = { { 0, 0 }, { 0, 0 } };
	struct request request = asking(FRAMED, SPIN);

	request.linger = linger;
	spinning = &request;
	inside = ticks = 0;
	wanted = 200;
	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &on, NULL);
	struct sgx_enclave_run run = visit(FRAMED, &request, EENTER);

	setitimer(ITIMER_REAL, &off, NULL);
	printf("ticking: leaf %u, left %d, wrong %#lx, told %d, in order %d\n", run.function, inside >= wanted, request.result,
	       request.handled > 0, request.handled <= (uint64_t)inside);
}

static void *spin(void *request)
{
	const struct sgx_enclave_run run = visit(FRAMED, request, EENTER);

	if (run.function != EEXIT)
		fail(3, "spinning: vector %u", run.exception_vector);
	return NULL;
}

/* Another thread changes the enclave, for which the kernel has every thread leave once. */
static void kicked(void)
{
	uint64_t wrong = 0, handled = 0;

	/* A kick may be slow, and the thread outside again before it. */
	for (int round = 0; round < (told ? 200 : 5) && !handled; round++) {
		struct request request = asking(FRAMED, SPIN);
		struct sgx_enclave_restrict_permissions restrict_page = {
			.offset = (OWN + DISAGREEING) * PAGE, .length = PAGE, .permissions = 3,
		};
		pthread_t thread;

		pthread_create(&thread, NULL, spin, &request);
		while (!request.begun)
			;
		if (ioctl(device, SGX_IOC_ENCLAVE_RESTRICT_PERMISSIONS, &restrict_page))
			fail(2, "restrict: %s", strerror(errno));
		usleep(5000);
		request.stop = 1;
		pthread_join(thread, NULL);
		wrong |= request.result;
		handled += request.handled;
	}
	printf("kicked: wrong %#lx, told %d\n", wrong, handled > 0);
}

int main(int argc, char **argv)
{
	const char *mode = argc > 2 ? argv[2] : "";

	setvbuf(stdout, NULL, _IOLBF, 0);
	vdso_enter = find_in_vdso("__vdso_sgx_enter_enclave");
	if (!vdso_enter)
		fail(2, "no SGX here");
	told = !strcmp(mode, "told") || !strcmp(mode, "growing");
	attribute = told || !strcmp(mode, "untold");
	build(argv[1]);
	if (!strcmp(mode, "growing")) {
		growing();
		return 0;
	}
	exception("ud2", UD2);
	if (!attribute)
		return 0;
	exception("decrement", DECREMENT);
	accepting();
	ticking(0);
	ticking(100000);
	kicked();
	misfits();
	return 0;
}
