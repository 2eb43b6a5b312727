/*
 * Signal handlers of a program's own, one mode for each thing that a program can rely on: what a handler may repair,
 * which stack it runs on, what is restored after it, what it sees of the interrupted code. Modes are the names in the
 * table at the end. A mode prints the same wherever it runs.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <execinfo.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#include "modes.h"

enum { PAGE = 4096, STACK = 65536 };

#ifndef SS_AUTODISARM
#define SS_AUTODISARM (1U << 31)
#endif

static const int special[] = { SIGILL, SIGTRAP, SIGBUS, SIGFPE, SIGSEGV, SIGSYS };
enum { SPECIAL = sizeof(special) / sizeof(*special) };

static sigjmp_buf back;
static volatile long count, value;
static char *memory;
static int file;
static char stacks[2][STACK] __attribute__((aligned(16)));

static void install(int number, void (*handler)(int, siginfo_t *, void *), int flags)
{
	struct sigaction action = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO | flags };

	if (sigaction(number, &action, NULL))
		printf("sigaction %d: %s\n", number, strerror(errno));
}

static void use_stack(void *stack, int flags)
{
	stack_t use = { .ss_sp = stack, .ss_size = STACK, .ss_flags = flags };

	if (sigaltstack(&use, NULL))
		printf("sigaltstack: %s\n", strerror(errno));
}

/* Which of the two stacks an address is on, -1 for neither. */
static int stack_of(const void *address)
{
	for (int i = 0; i < 2; i++)
		if ((const char *)address >= stacks[i] && (const char *)address < stacks[i] + STACK)
			return i;
	return -1;
}

static greg_t *registers(void *context)
{
	return ((ucontext_t *)context)->uc_mcontext.gregs;
}

/* A child that runs something and ends; prints how. */
static void in_child(const char *what, void (*run)(int), int argument)
{
	fflush(stdout);
	pid_t child = fork();
	int status;

	if (!child) {
		run(argument);
		fflush(stdout);
		_exit(0);
	}
	waitpid(child, &status, WUNTRACED);
	if (WIFSTOPPED(status)) {
		printf("%s %d: stopped by %d\n", what, argument, WSTOPSIG(status));
		kill(child, SIGKILL);
		waitpid(child, &status, 0);
	} else if (WIFSIGNALED(status)) {
		printf("%s %d: signal %d\n", what, argument, WTERMSIG(status));
	} else {
		printf("%s %d: exit %d\n", what, argument, WEXITSTATUS(status));
	}
}

static void unprotect(int number, siginfo_t *info, void *context)
{
	(void)number;
	(void)context;
	mprotect((void *)((uintptr_t)info->si_addr & -PAGE), PAGE, PROT_READ | PROT_WRITE);
	count++;
}

/* What a collector's write barrier does. */
static void repair_segv(int flags)
{
	enum { PAGES = 300 };

	memory = mmap(NULL, PAGES * PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	install(SIGSEGV, unprotect, flags);
	long sum = 0;

	for (int i = 0; i < PAGES; i++)
		memory[i * PAGE + i] = (char)i;
	for (int i = 0; i < PAGES; i++)
		sum += memory[i * PAGE + i];
	printf("%ld repaired, sum %ld\n", count, sum);
}

static void segv(void)
{
	repair_segv(0);
}

static void segv_altstack(void)
{
	use_stack(stacks[0], 0);
	repair_segv(SA_ONSTACK);
}

static void extend(int number, siginfo_t *info, void *context)
{
	(void)number;
	(void)context;
	if (ftruncate(file, ((char *)info->si_addr - memory) / PAGE * PAGE + PAGE))
		_exit(99);
	count++;
}

static void repair_bus(int flags)
{
	enum { PAGES = 50 };

	file = memfd_create("grows", 0);
	memory = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	install(SIGBUS, extend, flags);
	for (int i = 0; i < PAGES; i++)
		memory[i * PAGE] = 1;
	printf("%ld repaired\n", count);
}

static void bus(void)
{
	repair_bus(0);
}

static void bus_altstack(void)
{
	use_stack(stacks[0], 0);
	repair_bus(SA_ONSTACK);
}

static void emulate(int number, siginfo_t *info, void *context)
{
	greg_t *regs = registers(context);

	(void)number;
	(void)info;
	if (memcmp((void *)regs[REG_RIP], "\x0f\x0b", 2))
		_exit(99);
	regs[REG_RIP] += 2;
	regs[REG_RAX] = regs[REG_RDI] * 2;
	count++;
}

static void emulate_ill(int flags)
{
	long sum = 0, result;

	install(SIGILL, emulate, flags);
	for (long i = 0; i < 500; i++) {
		__asm__ volatile("ud2" : "=a"(result) : "D"(i));
		sum += result;
	}
	printf("%ld emulated, sum %ld\n", count, sum);
}

static void ill(void)
{
	emulate_ill(0);
}

static void ill_altstack(void)
{
	use_stack(stacks[0], 0);
	emulate_ill(SA_ONSTACK);
}

static void note_trap(int number, siginfo_t *info, void *context)
{
	(void)number;
	count++;
	value += info->si_code == TRAP_BRKPT || info->si_code == SI_KERNEL;
	(void)context;
}

static void trap(void)
{
	install(SIGTRAP, note_trap, 0);
	for (int i = 0; i < 500; i++)
		__asm__ volatile("int3");
	printf("%ld breakpoints, codes right %ld\n", count, value);
}

static void trap_altstack(void)
{
	use_stack(stacks[0], 0);
	install(SIGTRAP, note_trap, SA_ONSTACK);
	for (int i = 0; i < 500; i++)
		__asm__ volatile("int3");
	printf("%ld breakpoints, codes right %ld\n", count, value);
}

static void note_step(int number, siginfo_t *info, void *context)
{
	(void)number;
	(void)context;
	count++;
	value += info->si_code == TRAP_TRACE;
}

/* A program that single-steps itself. */
static void stepping(void)
{
	install(SIGTRAP, note_step, 0);
	__asm__ volatile("pushfq\n\torl $0x100, (%%rsp)\n\tpopfq\n\t"
			 "nop\n\tnop\n\tnop\n\tmov $5, %%eax\n\tnop\n\t"
			 "pushfq\n\tandl $~0x100, (%%rsp)\n\tpopfq\n\tnop"
			 ::: "rax", "memory", "cc");
	printf("%ld steps, codes right %ld\n", count, value);
}

/* Steps over a system call, one that a filter may look at. */
static void stepping_calls(void)
{
	long result;
	sigset_t set;

	sigemptyset(&set);
	install(SIGTRAP, note_step, 0);
	__asm__ volatile("pushfq\n\torl $0x100, (%%rsp)\n\tpopfq\n\t"
			 "syscall\n\tnop\n\t"
			 "pushfq\n\tandl $~0x100, (%%rsp)\n\tpopfq\n\tnop"
			 : "=a"(result) : "a"(SYS_getppid) : "rcx", "r11", "memory", "cc");
	printf("a plain call: parent right %d, %ld steps, codes right %ld\n", result == getppid(), count, value);
}

static void emulate_call(int number, siginfo_t *info, void *context)
{
	greg_t *regs = registers(context);

	(void)number;
	count += info->si_code == 1 && info->si_syscall == SYS_getcwd && info->si_errno == 77;
	value += (char *)info->si_call_addr == (char *)regs[REG_RIP];
	regs[REG_RAX] = 4711;
}

static struct sock_filter trap_getcwd[] = {
	BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
	BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getcwd, 0, 1),
	BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP | 77),
	BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_umask, 0, 1),
	BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | 55),
	BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_sched_yield, 0, 1),
	BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
	BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
};

static void yield(int unused)
{
	(void)unused;
	syscall(SYS_sched_yield);
}

/* A sandbox of the program's own, that emulates system calls in a handler of SIGSYS. */
static void sandbox(int flags)
{
	struct sock_fprog program = { sizeof(trap_getcwd) / sizeof(*trap_getcwd), trap_getcwd };
	long sum = 0;

	install(SIGSYS, emulate_call, flags);
	printf("no new privileges %d\n", prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	printf("filter %d\n", prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0));
	for (int i = 0; i < 100; i++)
		sum += syscall(SYS_getcwd, NULL, 0);
	printf("%ld trapped, sum %ld, address right %ld\n", count, sum, value);
	printf("refused %ld", syscall(SYS_umask, 0));
	printf(" %d\n", errno);
	in_child("killed", yield, 0);
	/* And what a filter does not mention goes on. */
	sigset_t set;

	sigemptyset(&set);
	printf("mask %d, open %d\n", sigprocmask(SIG_SETMASK, &set, NULL), open("/dev/null", O_RDONLY) >= 0);
}

static void sys(void)
{
	sandbox(0);
}

static void sys_altstack(void)
{
	use_stack(stacks[0], 0);
	sandbox(SA_ONSTACK);
}

static void divide(int number, siginfo_t *info, void *context)
{
	(void)number;
	value += info->si_code == FPE_INTDIV && (greg_t)info->si_addr == registers(context)[REG_RIP];
	registers(context)[REG_RCX] = 1;
	count++;
}

static void fpe(void)
{
	long sum = 0;

	install(SIGFPE, divide, 0);
	for (long i = 0; i < 100; i++) {
		long result;

		__asm__ volatile("xor %%edx, %%edx\n\tdivq %%rcx" : "=a"(result) : "a"(i), "c"(0L) : "rdx", "cc");
		sum += result;
	}
	printf("%ld divisions, sum %ld, codes right %ld\n", count, sum, value);
}

static void note_stack(int number, siginfo_t *info, void *context)
{
	stack_t now;
	char here;

	(void)number;
	(void)info;
	sigaltstack(NULL, &now);
	printf("signal %d on stack %d, flags %#x, in the context: %d with flags %#x\n", number, stack_of(&here), now.ss_flags,
	       stack_of(((ucontext_t *)context)->uc_stack.ss_sp), ((ucontext_t *)context)->uc_stack.ss_flags);
}

static void altstack(void)
{
	use_stack(stacks[0], 0);
	for (int i = 0; i < SPECIAL; i++) {
		install(special[i], note_stack, SA_ONSTACK);
		raise(special[i]);
		install(special[i], note_stack, 0);
		raise(special[i]);
	}
}

static void in_stack(int number, siginfo_t *info, void *context)
{
	stack_t other = { .ss_sp = stacks[1], .ss_size = STACK };

	note_stack(number, info, context);
	if (sigaltstack(&other, NULL))
		printf("change on the stack: %s\n", strerror(errno));
	raise(SIGUSR2);
}

static void altstack_nested(void)
{
	use_stack(stacks[0], 0);
	install(SIGUSR1, in_stack, SA_ONSTACK);
	install(SIGUSR2, note_stack, SA_ONSTACK);
	raise(SIGUSR1);
	install(SIGSEGV, in_stack, SA_ONSTACK);
	raise(SIGSEGV);
}

static void in_disarmed(int number, siginfo_t *info, void *context)
{
	note_stack(number, info, context);
	/* Nobody minds: the stack is out of use while this runs, and comes back when it returns. */
	use_stack(stacks[1], 0);
	raise(SIGUSR2);
}

static void autodisarm(void)
{
	stack_t now;

	use_stack(stacks[0], SS_AUTODISARM);
	sigaltstack(NULL, &now);
	printf("set: stack %d, flags %#x\n", stack_of(now.ss_sp), now.ss_flags);
	install(SIGUSR1, in_disarmed, SA_ONSTACK);
	install(SIGUSR2, note_stack, SA_ONSTACK);
	raise(SIGUSR1);
	sigaltstack(NULL, &now);
	printf("after: stack %d, flags %#x\n", stack_of(now.ss_sp), now.ss_flags);
	install(SIGSEGV, in_disarmed, SA_ONSTACK);
	raise(SIGSEGV);
	sigaltstack(NULL, &now);
	printf("after: stack %d, flags %#x\n", stack_of(now.ss_sp), now.ss_flags);
}

static void jump(int number, siginfo_t *info, void *context)
{
	char here;

	(void)info;
	(void)context;
	value = stack_of(&here);
	siglongjmp(back, number);
}

static void altstack_jumps(void)
{
	use_stack(stacks[0], 0);
	for (int i = 0; i < 200; i++) {
		install(special[i % SPECIAL], jump, SA_ONSTACK);
		if (!sigsetjmp(back, 1))
			raise(special[i % SPECIAL]);
		else
			count += value == 0;
	}
	printf("%ld jumps off the stack\n", count);
}

static void altstack_errors(void)
{
	stack_t stack = { .ss_sp = stacks[0], .ss_size = 100 }, old;

	printf("small %ld", syscall(SYS_sigaltstack, &stack, NULL));
	printf(" %s\n", strerror(errno));
	stack.ss_size = STACK;
	stack.ss_flags = 0x1234;
	printf("flags %ld", syscall(SYS_sigaltstack, &stack, NULL));
	printf(" %s\n", strerror(errno));
	printf("from nowhere %ld", syscall(SYS_sigaltstack, (void *)8, NULL));
	printf(" %s\n", strerror(errno));
	stack.ss_flags = SS_ONSTACK;
	printf("set with SS_ONSTACK %ld\n", syscall(SYS_sigaltstack, &stack, NULL));
	printf("to nowhere %ld", syscall(SYS_sigaltstack, NULL, (void *)8));
	printf(" %s\n", strerror(errno));
	stack.ss_flags = SS_DISABLE;
	printf("disabled %ld", syscall(SYS_sigaltstack, &stack, &old));
	printf(", before: %d %zu %#x\n", stack_of(old.ss_sp), old.ss_size, old.ss_flags);
	printf("again %ld", syscall(SYS_sigaltstack, NULL, &old));
	printf(", now: %d %zu %#x\n", old.ss_sp == NULL, old.ss_size, old.ss_flags);
}

/* A new thread has none. */
static void *thread_stack(void *unused)
{
	stack_t old;

	sigaltstack(NULL, &old);
	printf("in a thread: flags %#x\n", old.ss_flags);
	use_stack(stacks[1], 0);
	raise(SIGUSR1);
	return unused;
}

static void altstack_threads(void)
{
	pthread_t thread;
	stack_t old;

	use_stack(stacks[0], 0);
	install(SIGUSR1, note_stack, SA_ONSTACK);
	pthread_create(&thread, NULL, thread_stack, NULL);
	pthread_join(thread, NULL);
	raise(SIGUSR1);
	fflush(stdout);
	pid_t child = fork();

	if (!child) {
		sigaltstack(NULL, &old);
		printf("in a child: stack %d, flags %#x\n", stack_of(old.ss_sp), old.ss_flags);
		raise(SIGUSR1);
		fflush(stdout);
		_exit(0);
	}
	waitpid(child, NULL, 0);
}

static void jump_plainly(int number, siginfo_t *info, void *context)
{
	(void)info;
	(void)context;
	siglongjmp(back, number);
}

static void jumps(void)
{
	sigset_t now, none;

	sigemptyset(&none);
	for (volatile int i = 0; i < SPECIAL; i++) {
		install(special[i], jump_plainly, 0);
		for (volatile int with_mask = 0; with_mask < 2; with_mask++) {
			if (!sigsetjmp(back, with_mask))
				raise(special[i]);
			sigprocmask(SIG_SETMASK, NULL, &now);
			printf("%d, mask saved %d: blocked %d\n", special[i], with_mask, sigismember(&now, special[i]));
			sigprocmask(SIG_SETMASK, &none, NULL);
		}
	}
	for (volatile int i = 0; i < 1000; i++) {
		if (!sigsetjmp(back, 1))
			*(volatile char *)16 = 1;
		else
			count++;
	}
	printf("%ld faults jumped out of\n", count);
}

static void deepen(int number, siginfo_t *info, void *context)
{
	(void)info;
	(void)context;
	if (++count < 20)
		raise(number);
	value++;
}

static void nodefer(void)
{
	for (int i = 0; i < SPECIAL; i++) {
		count = value = 0;
		install(special[i], deepen, SA_NODEFER);
		raise(special[i]);
		printf("%d: %ld deep", special[i], count);
		count = value = 0;
		install(special[i], deepen, 0);
		raise(special[i]);
		printf(", deferred %ld and %ld\n", count, value);
	}
}

static void say(int number, siginfo_t *info, void *context)
{
	struct sigaction now;

	(void)info;
	(void)context;
	sigaction(number, NULL, &now);
	printf("handler of %d, default now %d\n", number, now.sa_handler == SIG_DFL);
	fflush(stdout);
}

static void twice(int number)
{
	struct rlimit none = { 0, 0 };

	setrlimit(RLIMIT_CORE, &none);
	install(number, say, SA_RESETHAND);
	raise(number);
	raise(number);
}

static void resethand(void)
{
	for (int i = 0; i < SPECIAL; i++)
		in_child("twice", twice, special[i]);
	in_child("twice", twice, SIGUSR1);
	in_child("twice", twice, SIGCHLD);
}

static void fault_again(int number, siginfo_t *info, void *context)
{
	(void)number;
	(void)info;
	(void)context;
	if (++count == 3)
		_exit(33);
	*(volatile char *)16 = 1;
}

static void fault_in_handler(int flags)
{
	struct rlimit none = { 0, 0 };

	setrlimit(RLIMIT_CORE, &none);
	install(SIGSEGV, fault_again, flags);
	*(volatile char *)16 = 1;
}

static long use_up(long depth)
{
	volatile char room[PAGE];

	room[0] = (char)depth;
	return count < 0 ? depth : use_up(depth + 1) + room[0];
}

static void overflow(int flags)
{
	struct rlimit none = { 0, 0 }, small = { 262144, 262144 };

	setrlimit(RLIMIT_CORE, &none);
	setrlimit(RLIMIT_STACK, &small);
	if (flags)
		use_stack(stacks[0], 0);
	install(SIGSEGV, fault_again, flags | SA_NODEFER);
	use_up(0);
}

static void no_stack(int number)
{
	struct rlimit none = { 0, 0 };

	setrlimit(RLIMIT_CORE, &none);
	install(number, fault_again, 0);
	__asm__ volatile("mov $16, %%rsp\n\tud2" ::: "memory");
}

static void fatal(void)
{
	in_child("fault in a handler", fault_in_handler, 0);
	in_child("fault in a handler that is not deferred", fault_in_handler, SA_NODEFER);
	in_child("overflow", overflow, 0);
	in_child("overflow with another stack", overflow, SA_ONSTACK);
	in_child("no stack for", no_stack, SIGILL);
}

/* What every signal does by itself. */
static void die(int number)
{
	struct rlimit none = { 0, 0 };

	setrlimit(RLIMIT_CORE, &none);
	kill(getpid(), number);
}

static void ignore(int number)
{
	signal(number, SIG_IGN);
	kill(getpid(), number);
}

static void defaults(void)
{
	for (int i = 1; i <= 64; i++)
		if (i != 32 && i != 33)
			in_child("default of", die, i);
	for (int i = 1; i <= 64; i++)
		if (i != 32 && i != 33)
			in_child("ignored", ignore, i);
}

static void except(int which)
{
	struct rlimit none = { 0, 0 };
	volatile int zero = 0;

	setrlimit(RLIMIT_CORE, &none);
	switch (which) {
	case 0: __asm__ volatile("ud2"); break;
	case 1: __asm__ volatile("int3"); break;
	case 2: *(volatile char *)16 = 1; break;
	case 3: *(volatile char *)0x8000000000000000 = 1; break;
	case 4: zero = 100 / zero; break;
	case 5: __asm__ volatile("hlt"); break;
	case 6: __asm__ volatile("int $0x7f"); break;
	case 7: __asm__ volatile("pushfq\n\torl $0x100, (%%rsp)\n\tpopfq\n\tnop" ::: "memory"); break;
	default: __asm__ volatile("pushfq\n\torl $0x40000, (%%rsp)\n\tpopfq\n\tmov 1(%%rsp), %%rax" ::: "rax", "memory");
	}
}

static void exceptions(void)
{
	for (int i = 0; i < 9; i++)
		in_child("exception", except, i);
}

/* Whether a core is written: the default action of some, and of exceptions. */
static void cores(void)
{
	static const int numbers[] = { SIGSEGV, SIGILL, SIGFPE, SIGTRAP, SIGABRT, SIGQUIT, SIGSYS, SIGTERM };
	char where[] = "/tmp/e2e-core-XXXXXX", name[64];
	struct rlimit limit;
	int status;

	getrlimit(RLIMIT_CORE, &limit);
	limit.rlim_cur = limit.rlim_max;
	setrlimit(RLIMIT_CORE, &limit);
	if (!mkdtemp(where) || chdir(where))
		_exit(98);
	for (size_t i = 0; i < sizeof(numbers) / sizeof(*numbers); i++) {
		fflush(stdout);
		pid_t child = fork();

		if (!child) {
			if (numbers[i] == SIGSEGV)
				*(volatile char *)16 = 1;
			raise(numbers[i]);
			_exit(0);
		}
		waitpid(child, &status, 0);
		printf("%d: signal %d, core %d\n", numbers[i], WTERMSIG(status), !!WCOREDUMP(status));
		snprintf(name, sizeof(name), "core.%d", child);
		unlink(name);
		unlink("core");
	}
	if (rmdir(where))
		printf("cannot remove %s: %s\n", where, strerror(errno));
}

static void change(int number, siginfo_t *info, void *context)
{
	ucontext_t *state = context;

	(void)number;
	(void)info;
	registers(context)[REG_RIP] += 2;
	registers(context)[REG_R12] = 12;
	registers(context)[REG_EFL] |= 1;
	((uint64_t *)&state->uc_mcontext.fpregs->_xmm[3])[0] = 0x1122334455667788;
	((uint64_t *)&state->uc_mcontext.fpregs->_xmm[15])[0] += 1;
	/* What the handler itself does with them is nobody's business. */
	__asm__ volatile("pxor %%xmm3, %%xmm3\n\tpxor %%xmm15, %%xmm15\n\txor %%r12d, %%r12d" ::: "xmm3", "xmm15", "r12");
	fpregset_t area = state->uc_mcontext.fpregs;

	value = ((uintptr_t)area & 63) == 0 && ((uint32_t *)area)[116] == 0x46505853;
}

static void context(void)
{
	uint64_t xmm3, xmm15, r12;
	unsigned char carry;

	install(SIGILL, change, 0);
	__asm__ volatile("movq %4, %%xmm15\n\tmov $1, %%r12d\n\tclc\n\tud2\n\tsetc %3\n\t"
			 "movq %%xmm3, %0\n\tmovq %%xmm15, %1\n\tmov %%r12, %2"
			 : "=&r"(xmm3), "=&r"(xmm15), "=&r"(r12), "=&r"(carry)
			 : "r"(41L)
			 : "xmm3", "xmm15", "r12", "cc");
	printf("xmm3 %#lx, xmm15 %lu, r12 %lu, carry %d, extended state %ld\n", xmm3, xmm15, r12, carry, value);
}

static volatile uint64_t wide_high;

static void keep_wide(int number, siginfo_t *info, void *context)
{
	(void)number;
	(void)info;
	registers(context)[REG_RIP] += 2;
	__asm__ volatile("vpxor %%ymm7, %%ymm7, %%ymm7\n\tvzeroupper" ::: "xmm7");
}

/* The upper halves of AVX registers survive a handler that clears them. */
static void wide(void)
{
	uint64_t in[4] = { 1, 2, 3, 4 }, out[4] = { 0 };

	if (!__builtin_cpu_supports("avx2")) {
		printf("kept 1 2 3 4\n");
		return;
	}
	install(SIGILL, keep_wide, 0);
	__asm__ volatile("vmovdqu (%0), %%ymm7\n\tud2\n\tvmovdqu %%ymm7, (%1)" :: "r"(in), "r"(out) : "xmm7", "memory");
	printf("kept %lu %lu %lu %lu\n", out[0], out[1], out[2], out[3]);
}

static void look(int number, siginfo_t *info, void *context)
{
	ucontext_t *state = context;
	void *frames[32];
	int depth = backtrace(frames, 32), found = 0;

	(void)number;
	for (int i = 0; i < depth; i++)
		found |= frames[i] == (void *)registers(context)[REG_RIP];
	printf("link %d, oldmask %lld, flags %d, segments %#llx, info above %d, backtrace through the frame %d\n",
	       state->uc_link != NULL, (long long)registers(context)[REG_OLDMASK], (state->uc_flags & 6) == 6,
	       (unsigned long long)registers(context)[REG_CSGSFS] & 0xffff, (void *)info > context, found);
	registers(context)[REG_RIP] += 2;
}

static void frame(void)
{
	void *warm[4];

	/* Loads the unwinder, which is not for handlers to do. */
	backtrace(warm, 4);
	install(SIGILL, look, 0);
	__asm__ volatile("ud2");
}

static void unblock_in_context(int number, siginfo_t *info, void *context)
{
	(void)number;
	(void)info;
	sigaddset(&((ucontext_t *)context)->uc_sigmask, SIGSEGV);
	sigaddset(&((ucontext_t *)context)->uc_sigmask, SIGUSR2);
	sigset_t set;

	/* Lasts only as long as the handler. */
	sigemptyset(&set);
	sigaddset(&set, SIGHUP);
	sigprocmask(SIG_BLOCK, &set, NULL);
}

static void context_mask(void)
{
	sigset_t now;

	install(SIGUSR1, unblock_in_context, 0);
	raise(SIGUSR1);
	sigprocmask(SIG_BLOCK, NULL, &now);
	printf("blocked by the context: SEGV %d, USR2 %d; in the handler: HUP %d\n", sigismember(&now, SIGSEGV),
	       sigismember(&now, SIGUSR2), sigismember(&now, SIGHUP));
}

static ucontext_t contexts[2];

static void other_context(int argument)
{
	for (int i = 0; i < 3; i++) {
		printf("other %d: %d\n", argument, i);
		swapcontext(&contexts[1], &contexts[0]);
	}
}

static void swapping(void)
{
	getcontext(&contexts[1]);
	contexts[1].uc_stack.ss_sp = stacks[0];
	contexts[1].uc_stack.ss_size = STACK;
	contexts[1].uc_link = NULL;
	makecontext(&contexts[1], (void (*)(void))other_context, 1, 7);
	for (int i = 0; i < 3; i++) {
		swapcontext(&contexts[0], &contexts[1]);
		printf("back %d\n", i);
	}
}

static void flags_inside(int number, siginfo_t *info, void *context)
{
	unsigned long flags;

	(void)number;
	(void)info;
	__asm__ volatile("pushfq\n\tpop %0" : "=r"(flags));
	printf("in the handler: direction %d; interrupted: direction %d\n", !!(flags & 0x400),
	       !!(registers(context)[REG_EFL] & 0x400));
	registers(context)[REG_RIP] += 2;
}

static void direction(void)
{
	unsigned long flags;

	install(SIGILL, flags_inside, 0);
	__asm__ volatile("std\n\tud2\n\tpushfq\n\tpop %0\n\tcld" : "=r"(flags));
	printf("afterwards: direction %d\n", !!(flags & 0x400));
}

static void sigaction_errors(void)
{
	struct {
		void *handler;
		unsigned long flags;
		void *restorer;
		unsigned long mask;
	} action = { SIG_IGN, 0, NULL, 0 };
	static const int numbers[] = { 0, 65, SIGKILL, SIGSTOP, -1 };

	for (int i = 0; i < 5; i++) {
		printf("set %d: %ld", numbers[i], syscall(SYS_rt_sigaction, numbers[i], &action, NULL, 8));
		printf(" %s\n", strerror(errno));
		printf("ask %d: %ld\n", numbers[i], syscall(SYS_rt_sigaction, numbers[i], NULL, &action, 8));
	}
	printf("size %ld", syscall(SYS_rt_sigaction, SIGUSR1, &action, NULL, 4));
	printf(" %s\n", strerror(errno));
	printf("from nowhere %ld", syscall(SYS_rt_sigaction, SIGUSR1, (void *)8, NULL, 8));
	printf(" %s\n", strerror(errno));
	printf("to nowhere %ld", syscall(SYS_rt_sigaction, SIGUSR1, &action, (void *)8, 8));
	printf(" %s\n", strerror(errno));
	printf("set all the same: ignored %d\n", signal(SIGUSR1, SIG_DFL) == SIG_IGN);
	printf("mask: size %ld", syscall(SYS_rt_sigprocmask, SIG_BLOCK, &action.mask, NULL, 4));
	printf(" %s", strerror(errno));
	printf(", how %ld", syscall(SYS_rt_sigprocmask, 9, &action.mask, NULL, 8));
	printf(" %s", strerror(errno));
	printf(", how without a set %ld", syscall(SYS_rt_sigprocmask, 9, NULL, &action.mask, 8));
	printf(", from nowhere %ld", syscall(SYS_rt_sigprocmask, SIG_BLOCK, (void *)8, NULL, 8));
	printf(" %s\n", strerror(errno));
	printf("open from nowhere %ld", syscall(SYS_openat, AT_FDCWD, (void *)8, O_RDONLY, 0));
	printf(" %s\n", strerror(errno));
}

int main(int argc, char **argv)
{
	static const struct mode modes[] = {
		{ "segv", segv },		{ "segv-altstack", segv_altstack },
		{ "bus", bus },			{ "bus-altstack", bus_altstack },
		{ "ill", ill },			{ "ill-altstack", ill_altstack },
		{ "trap", trap },		{ "trap-altstack", trap_altstack },
		{ "sys", sys },			{ "sys-altstack", sys_altstack },
		{ "fpe", fpe },			{ "stepping", stepping },
		{ "stepping-calls", stepping_calls }, { "altstack", altstack },
		{ "altstack-nested", altstack_nested }, { "autodisarm", autodisarm },
		{ "altstack-jumps", altstack_jumps }, { "altstack-errors", altstack_errors },
		{ "altstack-threads", altstack_threads }, { "jumps", jumps },
		{ "nodefer", nodefer },		{ "resethand", resethand },
		{ "fatal", fatal },		{ "defaults", defaults },
		{ "exceptions", exceptions },	{ "cores", cores },
		{ "context", context },		{ "wide", wide },
		{ "frame", frame },		{ "context-mask", context_mask },
		{ "swapping", swapping },	{ "direction", direction },
		{ "errors", sigaction_errors },
	};

	setvbuf(stdout, NULL, _IOLBF, 0);
	return run_mode(modes, COUNT(modes), argc > 1 ? argv[1] : NULL);
}
