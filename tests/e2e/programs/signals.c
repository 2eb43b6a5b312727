/*
 * Signals, as a program sees them: one mode for each promise of sigaction(2) and its relatives. Modes are the names
 * in the table at the end. The five signals that a runtime in this process may need for itself (SIGILL, SIGTRAP,
 * SIGBUS, SIGSEGV, SIGSYS) get most attention: a program must not notice that anybody else uses them.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include "modes.h"

enum { PAGE = 4096 };

static const int special[] = { SIGILL, SIGTRAP, SIGBUS, SIGSEGV, SIGSYS };
static sigjmp_buf back;
static volatile siginfo_t seen;
static volatile long trap_number, error_code, counter;
static const char *self_path;

static void install(int number, void (*handler)(int, siginfo_t *, void *), int flags, int blocked)
{
	struct sigaction action = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO | flags };

	sigemptyset(&action.sa_mask);
	if (blocked)
		sigaddset(&action.sa_mask, blocked);
	if (sigaction(number, &action, NULL))
		printf("sigaction %d: %s\n", number, strerror(errno));
}

static void remember(int number, siginfo_t *info, void *context)
{
	ucontext_t *state = context;

	(void)number;
	memcpy((void *)&seen, info, sizeof(seen));
	trap_number = state->uc_mcontext.gregs[REG_TRAPNO];
	error_code = state->uc_mcontext.gregs[REG_ERR];
	counter++;
}

static void remember_and_leave(int number, siginfo_t *info, void *context)
{
	remember(number, info, context);
	siglongjmp(back, 1);
}

static void siginfo(void)
{
	union sigval value = { .sival_int = 42 };

	install(SIGUSR1, remember, 0, 0);
	sigqueue(getpid(), SIGUSR1, value);
	printf("%d, queued %d, value %d, from me %d\n", seen.si_signo, seen.si_code == SI_QUEUE,
	       seen.si_value.sival_int, seen.si_pid == getpid());
	for (size_t i = 0; i < sizeof(special) / sizeof(*special); i++) {
		install(special[i], remember, 0, 0);
		raise(special[i]);
		printf("%d, by tkill %d, from me %d", seen.si_signo, seen.si_code == SI_TKILL, seen.si_pid == getpid());
		sigqueue(getpid(), special[i], value);
		printf(", queued %d, value %d\n", seen.si_code == SI_QUEUE, seen.si_value.sival_int);
	}
}

static void say_fault(const char *what, void *place)
{
	printf("%s: signal %d, code %d, trap %ld, error %#lx, right address %d\n", what, seen.si_signo, seen.si_code,
	       trap_number, error_code, seen.si_addr == place);
}

static void faults(void)
{
	char *memory = mmap(NULL, 2 * PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	FILE *file = tmpfile();
	char *mapped = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fileno(file), 0);
	volatile int zero = 0;

	for (size_t i = 0; i < sizeof(special) / sizeof(*special); i++)
		install(special[i], remember_and_leave, 0, 0);
	install(SIGFPE, remember_and_leave, 0, 0);
	if (!sigsetjmp(back, 1))
		*(volatile char *)0x10 = 1;
	say_fault("nothing mapped", (void *)0x10);
	if (!sigsetjmp(back, 1))
		((volatile char *)memory)[5] = 1;
	say_fault("read only", memory + 5);
	if (!sigsetjmp(back, 1))
		(void)*(volatile char *)0x8000000000000000;
	say_fault("not canonical", NULL);
	if (!sigsetjmp(back, 1))
		(void)((volatile char *)mapped)[7];
	say_fault("past the end of a file", mapped + 7);
	if (!sigsetjmp(back, 1))
		((void (*)(void))memory)();
	say_fault("not executable", memory);
	if (!sigsetjmp(back, 1))
		zero = 100 / zero;
	printf("division: signal %d, code %d\n", seen.si_signo, seen.si_code);
	if (!sigsetjmp(back, 1))
		__asm__ volatile("ud2");
	printf("ud2: signal %d, code %d, trap %ld\n", seen.si_signo, seen.si_code, trap_number);
	if (!sigsetjmp(back, 1))
		__asm__ volatile("int3");
	printf("int3: signal %d, code %d, trap %ld\n", seen.si_signo, seen.si_code, trap_number);
	if (!sigsetjmp(back, 1))
		__asm__ volatile("hlt");
	printf("hlt: signal %d, code %d, trap %ld\n", seen.si_signo, seen.si_code, trap_number);
}

static void skip_and_answer(int number, siginfo_t *info, void *context)
{
	ucontext_t *state = context;

	remember(number, info, context);
	state->uc_mcontext.gregs[REG_RIP] += 2;
	state->uc_mcontext.gregs[REG_RAX] = 4242;
	/* Neither may reach the interrupted code. */
	__asm__ volatile("xorps %%xmm5, %%xmm5; xor %%r13d, %%r13d" ::: "xmm5", "r13");
}

static void registers(void)
{
	long rax, r13;
	double x = 1.25, y;

	install(SIGILL, skip_and_answer, 0, 0);
	__asm__ volatile("movq %3, %%xmm5\n\tmov $77, %%r13\n\tmovq $99, -64(%%rsp)\n\tud2\n\t"
			 "movq %%xmm5, %2\n\tmov %%r13, %1\n\tadd -64(%%rsp), %1"
			 : "=a"(rax), "=&r"(r13), "=&r"(y)
			 : "r"(x)
			 : "r13", "xmm5", "memory");
	printf("rax %ld, r13 and red zone %ld, xmm5 %g, handled %ld\n", rax, r13, y, counter);
}

static char other_stack[65536];
static volatile int on_other_stack, flag_inside;

static void note_stack(int number, siginfo_t *info, void *context)
{
	char here;
	stack_t now;

	remember(number, info, context);
	on_other_stack = &here >= other_stack && &here < other_stack + sizeof(other_stack);
	sigaltstack(NULL, &now);
	flag_inside = now.ss_flags;
}

static void leave_from_stack(int number, siginfo_t *info, void *context)
{
	note_stack(number, info, context);
	siglongjmp(back, 1);
}

static long overflow(long depth)
{
	volatile char room[4096];

	room[0] = (char)depth;
	/* Never true, but the compiler must not know. */
	if (counter < 0)
		return depth;
	return overflow(depth + 1) + room[0];
}

static void altstack(void)
{
	stack_t stack = { .ss_sp = other_stack, .ss_size = sizeof(other_stack) }, old;

	sigaltstack(NULL, &old);
	printf("none at first: %d\n", old.ss_flags == SS_DISABLE);
	install(SIGUSR1, note_stack, 0, 0);
	install(SIGUSR2, note_stack, SA_ONSTACK, 0);
	install(SIGILL, note_stack, SA_ONSTACK, 0);
	raise(SIGUSR2);
	printf("asked for, but none set: %d\n", on_other_stack);
	printf("set %d\n", sigaltstack(&stack, NULL));
	raise(SIGUSR1);
	printf("not asked for: %d, flags %d\n", on_other_stack, flag_inside);
	raise(SIGUSR2);
	printf("asked for: %d, flags %d\n", on_other_stack, flag_inside);
	raise(SIGILL);
	printf("asked for by SIGILL: %d, flags %d\n", on_other_stack, flag_inside);
	sigaltstack(NULL, &old);
	printf("read back: %d, flags %d\n", old.ss_sp == other_stack && old.ss_size == sizeof(other_stack), old.ss_flags);
	install(SIGSEGV, leave_from_stack, SA_ONSTACK, 0);
	on_other_stack = 0;
	if (!sigsetjmp(back, 1))
		overflow(0);
	printf("stack overflow: signal %d on the other stack %d\n", seen.si_signo, on_other_stack);
	stack.ss_size = 16;
	printf("too small: %d", sigaltstack(&stack, NULL));
	printf(" %s\n", strerror(errno));
	stack.ss_flags = SS_DISABLE;
	printf("disabled: %d\n", sigaltstack(&stack, NULL));
	raise(SIGUSR2);
	printf("on it: %d\n", on_other_stack);
}

static sigset_t mask_inside;

static void note_mask(int number, siginfo_t *info, void *context)
{
	remember(number, info, context);
	sigprocmask(SIG_BLOCK, NULL, &mask_inside);
	printf("in the context: USR2 %d\n", sigismember(&((ucontext_t *)context)->uc_sigmask, SIGUSR2));
}

static void print_mask(const char *what, sigset_t *set)
{
	printf("%s:", what);
	for (int i = 1; i < 32; i++)
		if (sigismember(set, i))
			printf(" %d", i);
	printf("\n");
}

static void mask(void)
{
	sigset_t all, old, pending;

	sigprocmask(SIG_BLOCK, NULL, &old);
	print_mask("at first", &old);
	install(SIGUSR1, note_mask, 0, SIGSEGV);
	raise(SIGUSR1);
	print_mask("in the handler", &mask_inside);
	install(SIGSEGV, note_mask, SA_NODEFER, SIGSYS);
	raise(SIGSEGV);
	print_mask("in the handler of SIGSEGV", &mask_inside);
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, &old);
	print_mask("before", &old);
	sigprocmask(SIG_BLOCK, NULL, &old);
	print_mask("all", &old);
	counter = 0;
	for (size_t i = 0; i < sizeof(special) / sizeof(*special); i++) {
		install(special[i], remember, 0, 0);
		raise(special[i]);
	}
	sigpending(&pending);
	print_mask("pending", &pending);
	printf("handled while blocked %ld\n", counter);
	sigemptyset(&all);
	sigprocmask(SIG_SETMASK, &all, NULL);
	printf("handled afterwards %ld\n", counter);
}

/* Ticks handled, which a child sees as well. */
static volatile long *ticks;

static void tick(int number, siginfo_t *info, void *context)
{
	(void)number, (void)info, (void)context;
	++*ticks;
}

/* Again and again: the first tick may come before the call that it is to interrupt. */
static void tick_every(int milliseconds)
{
	struct itimerval timer = { { 0, milliseconds * 1000 }, { 0, milliseconds * 1000 } };

	setitimer(ITIMER_REAL, &timer, NULL);
}

static void restart(void)
{
	char byte = 0;
	int end[2];

	ticks = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	for (int round = 0; round < 2; round++) {
		install(SIGALRM, tick, round ? 0 : SA_RESTART, 0);
		if (pipe(end))
			exit(98);
		*ticks = 0;
		pid_t child = fork();

		if (!child) {
			for (int i = 0; i < 60000 && *ticks < 5; i++)
				usleep(1000);
			_exit(write(end[1], "x", 1) != 1);
		}
		tick_every(50);
		ssize_t length = read(end[0], &byte, 1);

		printf("read %zd %s, interrupted %d\n", length, length < 0 ? strerror(errno) : "", *ticks > 0);
		tick_every(0);
		*ticks = 5;
		waitpid(child, NULL, 0);
	}
	tick_every(50);
	printf("poll %d", poll(NULL, 0, 60000));
	printf(" %s\n", strerror(errno));
	struct timespec minute = { .tv_sec = 60 }, left = { 0 };

	printf("nanosleep %d", nanosleep(&minute, &left));
	printf(" %s, much left %d\n", strerror(errno), left.tv_sec >= 30 && left.tv_sec < 60);
	sigset_t none;

	sigemptyset(&none);
	printf("sigsuspend %d", sigsuspend(&none));
	printf(" %s\n", strerror(errno));
	printf("pause %d", pause());
	printf(" %s\n", strerror(errno));
	tick_every(0);
}

static void raise_other(int number, siginfo_t *info, void *context)
{
	(void)number;
	(void)info;
	(void)context;
	printf("outer begins\n");
	raise(SIGUSR2);
	printf("outer ends\n");
}

static void inner(int number, siginfo_t *info, void *context)
{
	remember(number, info, context);
	printf("inner %d\n", number);
}

static void recurse(int number, siginfo_t *info, void *context)
{
	(void)info;
	(void)context;
	if (++counter < 5)
		raise(number);
	printf("level %ld\n", counter--);
}

static void nested(void)
{
	install(SIGUSR1, raise_other, 0, 0);
	install(SIGUSR2, inner, 0, 0);
	raise(SIGUSR1);
	install(SIGUSR1, raise_other, 0, SIGUSR2);
	raise(SIGUSR1);
	install(SIGSEGV, recurse, SA_NODEFER, 0);
	counter = 0;
	raise(SIGSEGV);
}

static void reset(void)
{
	struct sigaction now;

	install(SIGBUS, inner, SA_RESETHAND, 0);
	raise(SIGBUS);
	sigaction(SIGBUS, NULL, &now);
	printf("default again: %d\n", now.sa_handler == SIG_DFL);
	fflush(stdout);
	raise(SIGBUS);
}

static void actions(void)
{
	struct sigaction now, set = { .sa_sigaction = remember, .sa_flags = SA_SIGINFO | SA_NODEFER };

	sigemptyset(&set.sa_mask);
	sigaddset(&set.sa_mask, SIGHUP);
	for (size_t i = 0; i < sizeof(special) / sizeof(*special); i++) {
		sigaction(special[i], NULL, &now);
		printf("%d: default %d", special[i], now.sa_handler == SIG_DFL);
		sigaction(special[i], &set, &now);
		printf(", was default %d", now.sa_handler == SIG_DFL);
		sigaction(special[i], NULL, &now);
		printf(", ours %d, flags %d, mask %d %d", now.sa_sigaction == remember,
		       (now.sa_flags & ~0x04000000) == (SA_SIGINFO | SA_NODEFER), sigismember(&now.sa_mask, SIGHUP),
		       sigismember(&now.sa_mask, SIGUSR1));
		signal(special[i], SIG_IGN);
		raise(special[i]);
		sigaction(special[i], NULL, &now);
		printf(", ignored %d\n", now.sa_handler == SIG_IGN);
	}
	printf("SIGKILL %d", sigaction(SIGKILL, &set, NULL));
	printf(" %s\n", strerror(errno));
}

static void waiting(void)
{
	struct timespec soon = { .tv_sec = 1 }, at_once = { 0 };
	struct signalfd_siginfo record;
	sigset_t set;
	siginfo_t info;
	int number = 0;

	sigfillset(&set);
	sigprocmask(SIG_SETMASK, &set, NULL);
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	raise(SIGUSR1);
	printf("sigwait %d", sigwait(&set, &number));
	printf(" %d\n", number);
	for (size_t i = 0; i < sizeof(special) / sizeof(*special); i++) {
		sigemptyset(&set);
		sigaddset(&set, special[i]);
		raise(special[i]);
		printf("sigtimedwait %d", sigtimedwait(&set, &info, &soon));
		printf(" %d\n", info.si_signo);
	}
	printf("none: %d", sigtimedwait(&set, &info, &at_once));
	printf(" %s\n", strerror(errno));
	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	int file = signalfd(-1, &set, SFD_CLOEXEC);

	raise(SIGUSR2);
	printf("signalfd %d", read(file, &record, sizeof(record)) == sizeof(record));
	printf(" %u\n", record.ssi_signo);
}

static void say_end(const char *what, pid_t child)
{
	int status;

	waitpid(child, &status, 0);
	printf("%s: signal %d, exit %d\n", what, WIFSIGNALED(status) ? WTERMSIG(status) : 0,
	       WIFEXITED(status) ? WEXITSTATUS(status) : -1);
}

/* A fault whose signal is blocked or ignored kills, whatever else is said about the signal. */
static void forced(void)
{
	struct rlimit no_core = { 0, 0 };

	setrlimit(RLIMIT_CORE, &no_core);
	for (int way = 0; way < 4; way++) {
		pid_t child = fork();

		if (!child) {
			sigset_t set;

			sigfillset(&set);
			install(SIGSEGV, remember_and_leave, 0, 0);
			if (way == 1)
				sigprocmask(SIG_SETMASK, &set, NULL);
			if (way == 2)
				signal(SIGSEGV, SIG_IGN);
			if (way == 3)
				signal(SIGSEGV, SIG_DFL);
			if (!sigsetjmp(back, 1))
				*(volatile char *)0x10 = 1;
			_exit(33);
		}
		say_end(((const char *[]){ "handled", "blocked", "ignored", "default" })[way], child);
	}
	pid_t child = fork();

	if (!child) {
		__asm__ volatile("ud2");
		_exit(34);
	}
	say_end("ud2", child);
}

static void inherited(void)
{
	char number[16];

	install(SIGUSR1, inner, 0, 0);
	signal(SIGUSR2, SIG_IGN);
	signal(SIGSYS, SIG_IGN);
	install(SIGSEGV, inner, 0, 0);
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGHUP);
	sigaddset(&set, SIGSEGV);
	sigprocmask(SIG_SETMASK, &set, NULL);
	pid_t child = fork();

	if (!child) {
		raise(SIGUSR1);
		fflush(stdout);
		snprintf(number, sizeof(number), "%d", getppid());
		execl(self_path, self_path, "after-exec", (char *)NULL);
		_exit(99);
	}
	say_end("child", child);
}

static void after_exec(void)
{
	static const int asked[] = { SIGUSR1, SIGUSR2, SIGSYS, SIGSEGV, SIGILL, SIGTRAP, SIGBUS, SIGPIPE };
	struct sigaction now;
	sigset_t set;

	for (size_t i = 0; i < sizeof(asked) / sizeof(*asked); i++) {
		sigaction(asked[i], NULL, &now);
		printf("%d: default %d, ignored %d\n", asked[i], now.sa_handler == SIG_DFL, now.sa_handler == SIG_IGN);
	}
	sigprocmask(SIG_BLOCK, NULL, &set);
	print_mask("inherited mask", &set);
}

static void *faulting_thread(void *argument)
{
	(void)argument;
	for (int i = 0; i < 200; i++)
		__asm__ volatile("ud2" ::: "rax", "memory");
	return NULL;
}

static void skip(int number, siginfo_t *info, void *context)
{
	(void)number;
	(void)info;
	((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP] += 2;
	__atomic_fetch_add(&counter, 1, __ATOMIC_RELAXED);
}

static void in_threads(void)
{
	pthread_t threads[20];

	install(SIGILL, skip, 0, 0);
	for (int i = 0; i < 20; i++)
		pthread_create(&threads[i], NULL, faulting_thread, NULL);
	for (int i = 0; i < 20; i++)
		pthread_join(threads[i], NULL);
	printf("%ld handled\n", counter);
}

static void timers(void)
{
	struct itimerval often = { { 0, 1000 }, { 0, 1000 } }, never = { 0 };
	volatile double sum = 0;

	install(SIGALRM, remember, SA_RESTART, 0);
	setitimer(ITIMER_REAL, &often, NULL);
	while (counter < 100)
		for (int i = 1; i < 1000; i++)
			sum = sum + 1.0 / i;
	setitimer(ITIMER_REAL, &never, NULL);
	printf("a hundred ticks\n");
}

int main(int argc, char **argv)
{
	static const struct mode modes[] = {
		{ "siginfo", siginfo },	    { "faults", faults },	{ "registers", registers },
		{ "altstack", altstack },   { "mask", mask },		{ "restart", restart },
		{ "nested", nested },	    { "reset", reset },		{ "actions", actions },
		{ "waiting", waiting },	    { "forced", forced },	{ "inherited", inherited },
		{ "after-exec", after_exec }, { "threads", in_threads },	{ "timers", timers },
	};

	setvbuf(stdout, NULL, _IOLBF, 0);
	self_path = argv[0];
	return run_mode(modes, COUNT(modes), argc > 1 ? argv[1] : NULL);
}
