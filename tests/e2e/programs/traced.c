/*
 * Programs that ask their parents to trace them. Modes: the names in the table at the end. What is printed is the stops
 * that a parent of such a child is sure of; later ones it passes on.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include "modes.h"

extern const char the_ud2[], the_int3[];

static const char *outcome(long result)
{
	return result < 0 ? strerrorname_np(errno) : "fine";
}

/* Waits for the next stop and says which it is; -1 when the child has ended. */
static int next_stop(pid_t child)
{
	int status;

	if (waitpid(child, &status, 0) != child)
		printf("waitpid: %s\n", strerrorname_np(errno));
	else if (WIFSTOPPED(status))
		return WSTOPSIG(status) | status >> 16 << 8;
	else if (WIFSIGNALED(status))
		printf("ended by %s\n", sigabbrev_np(WTERMSIG(status)));
	else
		printf("ended with %d\n", WEXITSTATUS(status));
	return -1;
}

static void expect_stop(const char *what, pid_t child)
{
	int stop = next_stop(child);

	if (stop >= 0)
		printf("%s: stopped by %s\n", what, stop == (SIGTRAP | 0x80) ? "a system call" : sigabbrev_np(stop));
}

/* Lets the child run to its end. */
static void run_on(pid_t child)
{
	int stop = 0;

	do
		ptrace(PTRACE_CONT, child, 0, stop == SIGTRAP || stop == SIGSTOP ? 0 : stop);
	while ((stop = next_stop(child)) >= 0);
}

static long registers(pid_t child, struct user_regs_struct *regs)
{
	return ptrace(PTRACE_GETREGS, child, 0, regs);
}

static void be_traced_and_run(void)
{
	ptrace(PTRACE_TRACEME, 0, 0, 0);
	execl("/bin/sh", "sh", "-c", "exit 7", (char *)NULL);
	_exit(99);
}

/* The new image stops before its first instruction. */
static void image(void)
{
	pid_t child = fork();

	if (!child)
		be_traced_and_run();
	expect_stop("new image", child);
	run_on(child);
}

static void vforked(void)
{
	pid_t child = vfork();

	if (!child)
		be_traced_and_run();
	expect_stop("new image", child);
	run_on(child);
}

/* The new image of a traced process that has said so by an event, and whose tracer looks at calls. */
static void event(void)
{
	struct user_regs_struct regs;
	int stop;
	pid_t child = fork();

	if (!child) {
		ptrace(PTRACE_TRACEME, 0, 0, 0);
		raise(SIGSTOP);
		execl("/bin/sh", "sh", "-c", "exit 8", (char *)NULL);
		_exit(99);
	}
	expect_stop("stopped itself", child);
	printf("options %s\n", outcome(ptrace(PTRACE_SETOPTIONS, child, 0, PTRACE_O_TRACEEXEC | PTRACE_O_TRACESYSGOOD)));
	ptrace(PTRACE_CONT, child, 0, 0);
	while ((stop = next_stop(child)) >= 0 && stop != (SIGTRAP | PTRACE_EVENT_EXEC << 8))
		ptrace(PTRACE_CONT, child, 0, stop);
	printf("new image %d\n", stop >= 0);
	ptrace(PTRACE_SYSCALL, child, 0, 0);
	expect_stop("end of the exec", child);
	registers(child, &regs);
	printf("result %lld\n", regs.rax);
	run_on(child);
}

/* Signals that a child sends itself. */
static void stops(void)
{
	struct user_regs_struct regs;
	pid_t child = fork();

	if (!child) {
		ptrace(PTRACE_TRACEME, 0, 0, 0);
		kill(getpid(), SIGSTOP);
		kill(getpid(), SIGTERM);
		_exit(1);
	}
	expect_stop("first", child);
	ptrace(PTRACE_SETOPTIONS, child, 0, PTRACE_O_TRACESYSGOOD);
	/* getpid, kill; each begins and ends. */
	for (int i = 0; i < 4; i++) {
		ptrace(PTRACE_SYSCALL, child, 0, 0);
		expect_stop("call", child);
		registers(child, &regs);
		printf("number %lld\n", regs.orig_rax);
	}
	ptrace(PTRACE_SYSCALL, child, 0, 0);
	expect_stop("signal", child);
	ptrace(PTRACE_CONT, child, 0, SIGTERM);
	next_stop(child);
}

static void exception(void)
{
	for (int i = 0; i < 2; i++) {
		struct user_regs_struct regs;
		pid_t child = fork();

		if (!child) {
			ptrace(PTRACE_TRACEME, 0, 0, 0);
			if (i)
				__asm__ volatile("int3\nthe_int3:");
			else
				__asm__ volatile("the_ud2: ud2");
			_exit(6);
		}
		expect_stop(i ? "breakpoint" : "exception", child);
		registers(child, &regs);
		printf("at the instruction %d\n", regs.rip == (uintptr_t)(i ? the_int3 : the_ud2));
		regs.rip += i ? 0 : 2;
		ptrace(PTRACE_SETREGS, child, 0, &regs);
		run_on(child);
	}
}

static volatile sig_atomic_t notices;

static void notice(int number)
{
	(void)number;
	notices++;
}

/* A child that makes many calls, and a parent that is told of its stops by a signal and waits for them. */
static void busy(void)
{
	struct sigaction action = { .sa_handler = notice, .sa_flags = SA_RESTART };

	sigaction(SIGCHLD, &action, NULL);
	for (int how = 0; how < 2; how++) {
		siginfo_t info = { 0 };
		int stops = 0, status = 0;
		pid_t child = fork();

		if (!child) {
			ptrace(PTRACE_TRACEME, 0, 0, 0);
			raise(SIGSTOP);
			for (int i = 0; i < 300; i++) {
				close(open("/dev/null", O_RDONLY));
				signal(SIGUSR1, SIG_IGN);
			}
			raise(SIGUSR2);
			_exit(3);
		}
		do {
			if (how)
				waitid(P_PID, child, &info, WEXITED | WSTOPPED);
			else
				waitpid(child, &status, 0);
			if (how ? info.si_code == CLD_EXITED : WIFEXITED(status))
				break;
			stops++;
			printf("%s\n", sigabbrev_np(how ? info.si_status : WSTOPSIG(status)));
		} while (!ptrace(PTRACE_CONT, child, 0, 0));
		printf("%d stops, ended with %d\n", stops, how ? info.si_status : WEXITSTATUS(status));
	}
	printf("noticed %d\n", notices > 0);
}

/* As programs do that do not want to be debugged. */
static void twice(void)
{
	pid_t child = fork();

	if (!child) {
		printf("once %s", outcome(ptrace(PTRACE_TRACEME, 0, 0, 0)));
		printf(", twice %s\n", outcome(ptrace(PTRACE_TRACEME, 0, 0, 0)));
		fflush(stdout);
		/* Its own children are nobody's to trace. */
		pid_t grandchild = fork();

		if (!grandchild)
			_exit(5);
		waitpid(grandchild, NULL, 0);
		_exit(4);
	}
	int stop;

	while ((stop = next_stop(child)) >= 0)
		ptrace(PTRACE_CONT, child, 0, stop);
}

int main(int argc, char **argv)
{
	static const struct mode modes[] = {
		{ "image", image },	    { "vforked", vforked }, { "event", event },
		{ "stops", stops }, { "exception", exception }, { "twice", twice },
		{ "busy", busy },
	};

	setvbuf(stdout, NULL, _IOLBF, 0);
	return run_mode(modes, COUNT(modes), argc > 1 ? argv[1] : NULL);
}
