/*
 * Sends a signal to a program at each instruction of an ECALL: on the way into an enclave, in it, and on the way out.
 *
 *   stepper PID BEGINS ENDS BASE SIZE [MOST]    PID: `inside KEY stepped` under way, which has printed the others
 *
 * The program goes round: `round_begins`, an ECALL, `round_ends`. A few rounds are single-stepped, and the
 * instructions of the shortest written down. Then, for each place in it, a round is run up to that place by a
 * hardware breakpoint, the program is sent a signal, and let go. The program's handler judges what it sees, and the
 * program its results; it prints them at its end. A place that occurs often is tried at its first occurrences only.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MOST_STEPS = 400000, MOST_PLACES = 20000, OCCURRENCES = 2, ROUNDS = 5 };

static pid_t pid;
static uint64_t begins, ends, base, size;
static struct {
	uint64_t rip;
	int occurrence;
} places[MOST_PLACES];
static int nr_places;
static uint64_t *trace;

static void fail(const char *what)
{
	printf("%s: %s\n", what, strerror(errno));
	exit(1);
}

static struct user_regs_struct registers(void)
{
	struct user_regs_struct regs;

	if (ptrace(PTRACE_GETREGS, pid, 0, &regs))
		fail("registers");
	return regs;
}

/* Breaks at an address by a debug register; 0 for none. */
static void break_at(uint64_t address)
{
	const size_t control = offsetof(struct user, u_debugreg) + 7 * sizeof(long);

	ptrace(PTRACE_POKEUSER, pid, control, 0L);
	if (ptrace(PTRACE_POKEUSER, pid, offsetof(struct user, u_debugreg), address) ||
	    ptrace(PTRACE_POKEUSER, pid, control, address ? 1L : 0L))
		fail("breakpoint");
}

/* Runs on to the next trap of ours; signals of the program's go to it. */
static void go_on(int how)
{
	long pass = 0;

	for (;;) {
		int status;

		if (ptrace(how, pid, 0, pass))
			fail("continue");
		if (waitpid(pid, &status, __WALL) != pid || !WIFSTOPPED(status)) {
			printf("the program has ended with status %#x\n", status);
			exit(1);
		}
		siginfo_t info = { 0 };
		int number = WSTOPSIG(status);

		ptrace(PTRACE_GETSIGINFO, pid, 0, &info);
		/* A breakpoint or a step, also one over a system call; not an int3 of the program's. */
		if (number == SIGTRAP && info.si_code > 0 && info.si_code != SI_KERNEL)
			return;
		pass = status >> 16 ? 0 : number;
		/* A signal that has just been taken: the step ends at its handler. */
		if (how == PTRACE_SINGLESTEP && status >> 16)
			return;
	}
}

static void run_to(uint64_t address)
{
	break_at(address);
	/* A step that was under way may be reported first. */
	for (int i = 0; i < 10; i++) {
		go_on(PTRACE_CONT);
		if (registers().rip == address)
			return;
	}
	fail("another place than the breakpoint's");
}

static int occurrences(uint64_t rip)
{
	int count = 0;

	for (int i = 0; i < nr_places; i++)
		count += places[i].rip == rip;
	return count;
}

/* Single-steps through one round; returns how many instructions it has. */
static int write_down(uint64_t *to)
{
	int steps = 0;

	run_to(begins);
	break_at(0);
	while (steps < MOST_STEPS) {
		uint64_t rip = registers().rip;

		if (rip == ends)
			break;
		/* A string instruction is many steps at one place. */
		if (!steps || to[steps - 1] != rip)
			to[steps++] = rip;
		/* PUSHFQ shows the step that is being made; the program shall not see it. */
		int shows = (ptrace(PTRACE_PEEKTEXT, pid, rip, 0) & 0xff) == 0x9c;

		go_on(PTRACE_SINGLESTEP);
		if (shows) {
			uint64_t at = registers().rsp;

			ptrace(PTRACE_POKEDATA, pid, at, ptrace(PTRACE_PEEKDATA, pid, at, 0) & ~0x100L);
		}
	}
	return steps;
}

int main(int argc, char **argv)
{
	int most = argc > 6 ? atoi(argv[6]) : MOST_PLACES, steps = 0, in_enclave = 0;

	if (argc < 6)
		return 99;
	pid = atoi(argv[1]);
	begins = strtoull(argv[2], NULL, 0);
	ends = strtoull(argv[3], NULL, 0);
	base = strtoull(argv[4], NULL, 0);
	size = strtoull(argv[5], NULL, 0);
	trace = malloc(MOST_STEPS * sizeof(*trace));
	uint64_t *other = malloc(MOST_STEPS * sizeof(*other));

	if (ptrace(PTRACE_SEIZE, pid, 0, 0) || ptrace(PTRACE_INTERRUPT, pid, 0, 0) || waitpid(pid, NULL, __WALL) != pid)
		fail("seize");
	/* A round in which a page has to be brought back, say, is longer, and the next one is not like it. */
	for (int round = 0; round < ROUNDS; round++) {
		int length = write_down(other);

		if (!round || length < steps) {
			uint64_t *shorter = other;

			other = trace;
			trace = shorter;
			steps = length;
		}
	}
	for (int i = 0; i < steps && nr_places < most; i++) {
		int before = occurrences(trace[i]);

		if (before >= OCCURRENCES)
			continue;
		places[nr_places].rip = trace[i];
		places[nr_places++].occurrence = before;
		in_enclave += trace[i] - base < size;
	}
	fprintf(stderr, "stepper: %d instructions, %d places, %d of them in the enclave\n", steps, nr_places, in_enclave);
	int reached = 0;

	for (int i = 0; i < nr_places; i++) {
		run_to(begins);
		break_at(places[i].rip);
		int there = 1;

		for (int k = 0; there && k <= places[i].occurrence; k++) {
			/* A place may be passed less often this time; the round's end is the limit. */
			const size_t second = offsetof(struct user, u_debugreg) + sizeof(long);
			const size_t control = offsetof(struct user, u_debugreg) + 7 * sizeof(long);

			ptrace(PTRACE_POKEUSER, pid, second, ends);
			ptrace(PTRACE_POKEUSER, pid, control, 5L);
			if (places[i].rip == begins && k == 0)
				continue;
			go_on(PTRACE_CONT);
			there = registers().rip == places[i].rip;
		}
		break_at(0);
		if (!there)
			continue;
		reached++;
		if (syscall(SYS_tgkill, pid, pid, SIGUSR1))
			fail("tgkill");
	}
	run_to(begins);
	break_at(0);
	ptrace(PTRACE_DETACH, pid, 0, 0);
	kill(pid, SIGTERM);
	fprintf(stderr, "stepper: %d reached\n", reached);
	printf("reached %d, in the enclave %d\n", reached * 10 >= nr_places * 9, in_enclave > 10);
	return 0;
}
