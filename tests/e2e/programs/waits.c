/*
 * Waiting for signals, sending them, being interrupted by them: one mode for each promise. Half of what is sent here
 * are the signals of exceptions (SIGILL, SIGTRAP, SIGBUS, SIGFPE, SIGSEGV, SIGSYS), which have to do what all others
 * do when somebody merely sends them. Modes are the names in the table at the end.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "modes.h"

static const int sent[] = { SIGUSR1, SIGILL, SIGTRAP, SIGBUS, SIGFPE, SIGSEGV, SIGSYS, SIGTERM };
enum { SENT = sizeof(sent) / sizeof(*sent) };

static volatile int last, count, codes_right;
static volatile pid_t from;
static sigset_t inside;

static void note(int number, siginfo_t *info, void *context)
{
	(void)context;
	last = number;
	from = info->si_pid;
	codes_right += info->si_code == SI_USER;
	count++;
}

static void note_mask(int number, siginfo_t *info, void *context)
{
	note(number, info, context);
	sigprocmask(SIG_BLOCK, NULL, &inside);
}

static void install(int number, void (*handler)(int, siginfo_t *, void *), int flags)
{
	struct sigaction action = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO | flags };

	sigaction(number, &action, NULL);
}

static sigset_t only(int number)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, number);
	return set;
}

static sigset_t all_but(int number)
{
	sigset_t set;

	sigfillset(&set);
	sigdelset(&set, number);
	return set;
}

/* A child that sends a signal to this process when it is asleep, and ends. */
static pid_t send_later(int number)
{
	pid_t parent = getpid(), child;

	fflush(stdout);
	child = fork();
	if (!child) {
		char path[64], state = 0;

		/* Asleep: the third field of its stat. */
		snprintf(path, sizeof(path), "/proc/%d/stat", parent);
		for (int i = 0; i < 2000 && state != 'S'; i++) {
			FILE *stat = fopen(path, "r");

			usleep(1000);
			if (!stat)
				break;
			if (fscanf(stat, "%*d (%*[^)]) %c", &state) != 1)
				state = 0;
			fclose(stat);
		}
		usleep(20000);
		kill(parent, number);
		_exit(0);
	}
	return child;
}

static void reap(pid_t child)
{
	while (waitpid(child, NULL, 0) < 0 && errno == EINTR)
		;
}

static const char *outcome(long result)
{
	return result < 0 ? strerrorname_np(errno) : "fine";
}

static void suspend(void)
{
	sigset_t blocked;

	sigfillset(&blocked);
	sigprocmask(SIG_SETMASK, &blocked, NULL);
	for (int i = 0; i < SENT; i++) {
		sigset_t open = all_but(sent[i]), now;

		install(sent[i], note_mask, 0);
		/* Pending before, and sent while it waits. */
		raise(sent[i]);
		printf("%d, pending: %s", sent[i], outcome(sigsuspend(&open)));
		printf(", handled %d, others blocked inside %d, itself %d\n", last, sigismember(&inside, SIGUSR2),
		       sigismember(&inside, sent[i]));
		pid_t child = send_later(sent[i]);

		last = 0;
		printf("%d, sent: %s", sent[i], outcome(sigsuspend(&open)));
		reap(child);
		sigprocmask(SIG_BLOCK, NULL, &now);
		printf(", handled %d, from the child %d, blocked again %d\n", last, from == child, sigismember(&now, sent[i]));
	}
}

static long wait_ppoll(const sigset_t *mask)
{
	struct timespec long_time = { 20, 0 };

	return ppoll(NULL, 0, &long_time, mask);
}

static long wait_pselect(const sigset_t *mask)
{
	struct timespec long_time = { 20, 0 };

	return pselect(0, NULL, NULL, NULL, &long_time, mask);
}

static long wait_epoll(const sigset_t *mask)
{
	struct epoll_event event;
	int file = epoll_create1(0);
	long result = epoll_pwait(file, &event, 1, 20000, mask);
	int error = errno;

	close(file);
	errno = error;
	return result;
}

static long wait_epoll2(const sigset_t *mask)
{
	struct timespec long_time = { 20, 0 };
	struct epoll_event event;
	int file = epoll_create1(0);
	long result = syscall(441, file, &event, 1, &long_time, mask, 8);
	int error = errno;

	close(file);
	errno = error;
	return result;
}

static void with_mask(long (*wait)(const sigset_t *))
{
	sigset_t blocked;

	sigfillset(&blocked);
	sigprocmask(SIG_SETMASK, &blocked, NULL);
	for (int i = 0; i < SENT; i++) {
		sigset_t open = all_but(sent[i]), now;

		install(sent[i], note_mask, SA_RESTART);
		raise(sent[i]);
		last = 0;
		printf("%d, pending: %s", sent[i], outcome(wait(&open)));
		printf(", handled %d\n", last);
		pid_t child = send_later(sent[i]);

		last = 0;
		printf("%d, sent: %s", sent[i], outcome(wait(&open)));
		reap(child);
		sigprocmask(SIG_BLOCK, NULL, &now);
		printf(", handled %d, blocked inside %d, blocked again %d\n", last, sigismember(&inside, sent[i]),
		       sigismember(&now, sent[i]));
	}
}

static void ppoll_mode(void)
{
	with_mask(wait_ppoll);
}

static void pselect_mode(void)
{
	with_mask(wait_pselect);
}

static void epoll_mode(void)
{
	with_mask(wait_epoll);
	with_mask(wait_epoll2);
}

static void timedwait(void)
{
	struct timespec long_time = { 20, 0 }, short_time = { 0, 1000000 };
	sigset_t blocked;
	siginfo_t info;

	sigfillset(&blocked);
	sigprocmask(SIG_SETMASK, &blocked, NULL);
	for (int i = 0; i < SENT; i++) {
		sigset_t set = only(sent[i]);

		raise(sent[i]);
		printf("%d, pending: %d", sent[i], sigtimedwait(&set, &info, &long_time));
		printf(", code %d", info.si_code);
		pid_t child = send_later(sent[i]);

		memset(&info, 0, sizeof(info));
		printf("; sent: %d", sigtimedwait(&set, &info, &long_time));
		printf(", code %d, from the child %d", info.si_code, info.si_pid == child);
		reap(child);
		printf("; none: %d", sigtimedwait(&set, &info, &short_time));
		printf(" %s\n", strerrorname_np(errno));
	}
}

static void *wait_in_thread(void *argument)
{
	sigset_t set = only((int)(intptr_t)argument);
	siginfo_t info;

	return (void *)(intptr_t)sigwaitinfo(&set, &info);
}

/* A thread that takes the signals of a process in which everybody blocks them. */
static void waiting_thread(void)
{
	sigset_t blocked;
	pthread_t thread;
	void *result;

	sigfillset(&blocked);
	sigprocmask(SIG_SETMASK, &blocked, NULL);
	for (int i = 0; i < SENT; i++) {
		pthread_create(&thread, NULL, wait_in_thread, (void *)(intptr_t)sent[i]);
		usleep(30000);
		kill(getpid(), sent[i]);
		pthread_join(thread, &result);
		printf("%d waited for by a thread: %d\n", sent[i], (int)(intptr_t)result);
	}
}

static pthread_t open_thread;
static volatile int right_thread, stop;

static void note_thread(int number, siginfo_t *info, void *context)
{
	note(number, info, context);
	right_thread += pthread_equal(pthread_self(), open_thread);
}

static void *stay_open(void *unused)
{
	sigset_t none;

	sigemptyset(&none);
	pthread_sigmask(SIG_SETMASK, &none, NULL);
	while (!stop)
		usleep(1000);
	return unused;
}

/* Of several threads, the one that does not block a signal gets it. */
static void open_thread_mode(void)
{
	sigset_t blocked;

	sigfillset(&blocked);
	sigprocmask(SIG_SETMASK, &blocked, NULL);
	for (int i = 0; i < SENT; i++)
		install(sent[i], note_thread, 0);
	pthread_create(&open_thread, NULL, stay_open, NULL);
	usleep(30000);
	for (int i = 0; i < SENT; i++) {
		count = 0;
		kill(getpid(), sent[i]);
		for (int k = 0; k < 60000 && !count; k++)
			usleep(1000);
		printf("%d: handled %d\n", sent[i], count);
	}
	stop = 1;
	pthread_join(open_thread, NULL);
	printf("in the right thread %d, by kill %d\n", right_thread, codes_right);
}

/* What stays pending for the process goes to the first that opens. */
static void pending(void)
{
	sigset_t blocked, now, none;

	sigfillset(&blocked);
	sigprocmask(SIG_SETMASK, &blocked, NULL);
	sigemptyset(&none);
	for (int i = 0; i < SENT; i++)
		install(sent[i], note_thread, 0);
	for (int i = 0; i < SENT; i++) {
		kill(getpid(), sent[i]);
		kill(getpid(), sent[i]);
	}
	sigpending(&now);
	for (int i = 0; i < SENT; i++)
		printf("%d pending %d\n", sent[i], sigismember(&now, sent[i]));
	fflush(stdout);
	if (!fork()) {
		sigpending(&now);
		for (int i = 0; i < SENT; i++)
			printf("%d pending in a child %d\n", sent[i], sigismember(&now, sent[i]));
		fflush(stdout);
		_exit(0);
	}
	wait(NULL);
	count = 0;
	sigprocmask(SIG_SETMASK, &none, NULL);
	printf("handled %d\n", count);
	sigpending(&now);
	printf("pending %d\n", !sigisemptyset(&now));
}

static void descriptors(void)
{
	struct signalfd_siginfo record;
	sigset_t blocked, set;

	sigfillset(&blocked);
	sigprocmask(SIG_SETMASK, &blocked, NULL);
	sigemptyset(&set);
	for (int i = 0; i < SENT; i++)
		sigaddset(&set, sent[i]);
	int file = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
	struct pollfd ready = { .fd = file, .events = POLLIN };

	printf("empty: %s\n", outcome(read(file, &record, sizeof(record))));
	/* The signals of exceptions are not all that a signal descriptor is used for. */
	for (int i = 0; i < SENT; i += SENT - 1) {
		pid_t child = send_later(sent[i]);

		printf("%d: poll %d", sent[i], poll(&ready, 1, 20000));
		printf(", read %zd, number %u, from the child %d\n", read(file, &record, sizeof(record)), record.ssi_signo,
		       record.ssi_pid == (uint32_t)child);
		reap(child);
	}
	set = only(SIGHUP);
	printf("changed: %d", signalfd(file, &set, 0) == file);
	kill(getpid(), SIGTERM);
	kill(getpid(), SIGHUP);
	printf(", poll %d, read %zd", poll(&ready, 1, 0), read(file, &record, sizeof(record)));
	printf(", number %u\n", record.ssi_signo);
}

static struct {
	int number, value;
} queued[64];
static volatile int nr_queued;

static void note_queued(int number, siginfo_t *info, void *context)
{
	(void)context;
	if (nr_queued < 64) {
		queued[nr_queued].number = number;
		queued[nr_queued++].value = info->si_code == SI_QUEUE ? info->si_value.sival_int : -1;
	}
}

static void queue(void)
{
	const int numbers[] = { SIGRTMIN + 5, SIGUSR1, SIGRTMIN, SIGRTMIN + 5, SIGSEGV, SIGUSR1, SIGRTMIN, SIGRTMAX };
	sigset_t blocked, old;
	siginfo_t info;

	sigfillset(&blocked);
	sigprocmask(SIG_SETMASK, &blocked, &old);
	for (int i = 0; i < 8; i++) {
		install(numbers[i], note_queued, 0);
		printf("%d", sigqueue(getpid(), numbers[i], (union sigval){ .sival_int = 100 + i }));
	}
	sigset_t first = only(SIGRTMIN);

	printf("\nwaited for: %d", sigwaitinfo(&first, &info));
	printf(" value %d\n", info.si_value.sival_int);
	/* Only one at a time, so that the order is the kernel's and not that of nesting. */
	const int order[] = { SIGUSR1, SIGSEGV, SIGRTMIN, SIGRTMIN + 5, SIGRTMAX };

	for (int i = 0; i < 5; i++) {
		sigset_t set = only(order[i]);

		sigprocmask(SIG_UNBLOCK, &set, NULL);
	}
	for (int i = 0; i < nr_queued; i++)
		printf("%d %d\n", queued[i].number, queued[i].value);
}

static volatile int in_right_thread;
static __thread int own_index = -1;
static volatile int ready_threads;

static void note_value(int number, siginfo_t *info, void *context)
{
	(void)number;
	(void)context;
	in_right_thread += info->si_value.sival_int == own_index;
	__atomic_fetch_add(&count, 1, __ATOMIC_SEQ_CST);
}

/* A signal that gets in the way of another does so now and then. */
enum { ROUNDS = 10 };

static void *wait_for_value(void *argument)
{
	own_index = (int)(intptr_t)argument;
	__atomic_fetch_add(&ready_threads, 1, __ATOMIC_SEQ_CST);
	while (count < ROUNDS * SENT * 20)
		usleep(1000);
	return NULL;
}

static void directed(void)
{
	pthread_t threads[20];

	for (int i = 0; i < SENT; i++)
		install(sent[i], note_value, 0);
	for (int i = 0; i < 20; i++)
		pthread_create(&threads[i], NULL, wait_for_value, (void *)(intptr_t)i);
	while (ready_threads < 20)
		usleep(1000);
	for (int round = 1; round <= ROUNDS; round++) {
		for (int k = 0; k < SENT; k++)
			for (int i = 0; i < 20; i++)
				pthread_sigqueue(threads[i], sent[k], (union sigval){ .sival_int = i });
		/* One of a kind is pending at a time. */
		while (count < round * SENT * 20)
			usleep(1000);
	}
	for (int i = 0; i < 20; i++)
		pthread_join(threads[i], NULL);
	printf("%d handled\n", count);
}

static int ends[2];
static pthread_t main_thread;
static pid_t main_tid;
/* The call that the main thread is about to make, by the numbers that it may have. */
static int about_to[2];
/* The thing that it waits for, where the number says too little. */
static const char *about;

/* Whether the main thread is asleep in that call, and in no other: its number and its first argument. */
static int is_there(void)
{
	char path[64];
	uintptr_t first = 0;
	int number = -1;

	snprintf(path, sizeof(path), "/proc/self/task/%d/syscall", main_tid);
	FILE *file = fopen(path, "r");

	if (!file)
		_exit(97);
	int fields = fscanf(file, "%d %lx", &number, &first);

	fclose(file);
	return fields == 2 && (number == about_to[0] || number == about_to[1]) &&
	       (!about || first - (uintptr_t)about < 4096);
}

/* Interrupts the main thread when it is asleep, and then lets it have what it waits for. */
static void *interrupt_main(void *joins)
{
	if (joins)
		about = (const char *)pthread_self();
	while (!is_there())
		usleep(1000);
	pthread_kill(main_thread, SIGALRM);
	while (!count)
		usleep(1000);
	usleep(20000);
	if (write(ends[1], "x", 1) != 1)
		_exit(99);
	return joins;
}

/* A child that ends, or lets its lock go, when the other end of a pipe says so. */
static pid_t child_until_told(int file)
{
	struct flock lock = { .l_type = F_WRLCK };
	int told[2];
	char byte;

	if (pipe(told))
		_exit(98);
	pid_t child = fork();

	if (child) {
		close(told[1]);
		(void)!read(told[0], &byte, 1);
		close(told[0]);
		return child;
	}
	if (file >= 0)
		fcntl(file, F_SETLK, &lock);
	(void)!write(told[1], "x", 1);
	(void)!read(ends[0], &byte, 1);
	_exit(7);
}

/* Calls that are interrupted by a handler: which go on by themselves. */
static void interrupted(int flags)
{
	static const char *const names[] = {
		"read",	     "poll", "select",  "sleep", "futex", "socket", "socket with a time limit",
		"semaphore", "join", "waitpid", "lock",	 "open",
	};
	static const int numbers[][2] = {
		{ SYS_read, -1 }, { SYS_poll, SYS_ppoll }, { SYS_select, SYS_pselect6 }, { SYS_nanosleep, SYS_clock_nanosleep },
		{ SYS_futex, -1 }, { SYS_read, -1 }, { SYS_recvfrom, -1 }, { SYS_futex, -1 },
		{ SYS_futex, -1 }, { SYS_wait4, -1 }, { SYS_fcntl, -1 }, { SYS_open, SYS_openat },
	};
	struct timeval twenty = { .tv_sec = 20 };
	struct timespec later;
	struct flock lock = { .l_type = F_WRLCK };
	pthread_t thread;
	uint32_t word = 1;
	char byte;
	sem_t semaphore;
	fd_set set;

	main_thread = pthread_self();
	main_tid = gettid();
	install(SIGALRM, note, flags);
	for (int i = 0; i < 12; i++) {
		char fifo[] = "/tmp/e2e-fifo-XXXXXX";
		int file = memfd_create("locked", 0), status = 0;
		pid_t child = 0;
		long result = 0;

		if (i == 5 || i == 6 ? socketpair(AF_UNIX, SOCK_STREAM, 0, ends) : pipe(ends))
			_exit(98);
		if (i == 9 || i == 10)
			child = child_until_told(i == 10 ? file : -1);
		if (i == 11) {
			close(mkstemp(fifo));
			unlink(fifo);
			if (mkfifo(fifo, 0600))
				_exit(98);
			child = fork();
			if (!child) {
				(void)!read(ends[0], &byte, 1);
				_exit(open(fifo, O_WRONLY) < 0);
			}
		}
		clock_gettime(CLOCK_REALTIME, &later);
		later.tv_sec += 20;
		FD_ZERO(&set);
		FD_SET(ends[0], &set);
		struct pollfd ready = { .fd = ends[0], .events = POLLIN };

		count = 0;
		memcpy(about_to, numbers[i], sizeof(about_to));
		about = i == 4 ? (const char *)&word : i == 7 ? (const char *)&semaphore : NULL;
		pthread_create(&thread, NULL, interrupt_main, i == 8 ? &thread : NULL);
		switch (i) {
		case 0:
		case 5: result = read(ends[0], &byte, 1); break;
		case 1: result = poll(&ready, 1, 20000); break;
		case 2: result = select(ends[0] + 1, &set, NULL, NULL, &twenty); break;
		case 3: result = nanosleep(&(struct timespec){ 20, 0 }, NULL); break;
		case 4:
			result = syscall(SYS_futex, &word, FUTEX_WAIT, 1, &(struct timespec){ 20, 0 }, NULL, 0);
			break;
		case 6:
			setsockopt(ends[0], SOL_SOCKET, SO_RCVTIMEO, &twenty, sizeof(twenty));
			result = recv(ends[0], &byte, 1, 0);
			break;
		case 7:
			sem_init(&semaphore, 0, 0);
			result = sem_timedwait(&semaphore, &later);
			break;
		case 8: result = pthread_join(thread, NULL); break;
		case 9: result = waitpid(child, &status, 0); break;
		case 10: result = fcntl(file, F_SETLKW, &lock); break;
		case 11: result = open(fifo, O_RDONLY); break;
		}
		printf("%s: %s, interrupted %d\n", names[i], outcome(result), count);
		if (i != 8)
			pthread_join(thread, NULL);
		/* The child waits for this end if the call has failed. */
		if (i == 11 && result < 0)
			result = open(fifo, O_RDONLY);
		if (i == 11)
			unlink(fifo);
		if (child && !(i == 9 && result > 0))
			reap(child);
		close(ends[0]);
		close(ends[1]);
		close(file);
	}
}

static void restarting(void)
{
	interrupted(SA_RESTART);
}

static void failing(void)
{
	interrupted(0);
}

/* Calls under a timer of 1 kHz do what they do without it. */
static void storm(void)
{
	struct itimerval often = { { 0, 1000 }, { 0, 1000 } }, never = { 0 };
	int wrong = 0;
	sigset_t set;

	install(SIGALRM, note, SA_RESTART);
	setitimer(ITIMER_REAL, &often, NULL);
	for (int i = 0; i < 20000 || count < 200; i++) {
		sigset_t blocked = only(sent[i % SENT]), old;
		int file;

		wrong += sigprocmask(SIG_BLOCK, &blocked, &old) != 0 || sigismember(&old, SIGUSR1) != 0;
		wrong += sigprocmask(SIG_SETMASK, &old, &set) != 0 || sigismember(&set, sent[i % SENT]) != 1;
		if (i % 16 == 0) {
			file = open("/dev/null", O_RDWR);
			wrong += file < 0 || write(file, "x", 1) != 1 || close(file);
		}
		if (i % 512 == 0) {
			pid_t child = fork();
			int status = 1;

			if (!child)
				_exit(5);
			wrong += waitpid(child, &status, 0) != child || WEXITSTATUS(status) != 5;
		}
	}
	setitimer(ITIMER_REAL, &never, NULL);
	printf("wrong %d\n", wrong);
}

static void timers(void)
{
	struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGSEGV, .sigev_value.sival_int = 77 };
	struct itimerspec soon = { .it_value = { .tv_nsec = 20000000 } };
	sigset_t set = only(SIGSEGV);
	siginfo_t info;
	timer_t timer;

	sigprocmask(SIG_BLOCK, &set, NULL);
	printf("create %d", timer_create(CLOCK_MONOTONIC, &event, &timer));
	printf(", set %d", timer_settime(timer, 0, &soon, NULL));
	printf(", wait %d", sigwaitinfo(&set, &info));
	printf(", from a timer %d, value %d\n", info.si_code == SI_TIMER, info.si_value.sival_int);
	timer_delete(timer);
	event.sigev_signo = SIGRTMIN + 1;
	set = only(SIGRTMIN + 1);
	sigprocmask(SIG_BLOCK, &set, NULL);
	timer_create(CLOCK_MONOTONIC, &event, &timer);
	timer_settime(timer, 0, &soon, NULL);
	printf("wait %d", sigwaitinfo(&set, &info) == SIGRTMIN + 1);
	printf(", from a timer %d, value %d, overruns %d\n", info.si_code == SI_TIMER, info.si_value.sival_int,
	       timer_getoverrun(timer));
}

static volatile int file_code, file_number;

static void note_file(int number, siginfo_t *info, void *context)
{
	(void)number;
	(void)context;
	file_code = info->si_code;
	file_number = info->si_fd;
	count++;
}

/* Descriptors that announce themselves by a signal, also by those of exceptions. */
static void files(void)
{
	const int numbers[] = { SIGIO, SIGRTMIN + 3, SIGSYS, SIGFPE, SIGTRAP };
	int pair[2];
	char byte;

	if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair))
		_exit(98);
	for (int i = 0; i < 5; i++) {
		install(numbers[i], note_file, 0);
		fcntl(pair[0], F_SETOWN, getpid());
		fcntl(pair[0], F_SETSIG, numbers[i]);
		fcntl(pair[0], F_SETFL, O_ASYNC | O_NONBLOCK);
		count = 0;
		if (write(pair[1], "x", 1) != 1)
			_exit(98);
		printf("%d: handled %d, code %d, descriptor %d\n", i, count > 0, file_code, file_number == pair[0]);
		while (read(pair[0], &byte, 1) > 0)
			;
	}
}

/* Stopping and continuing, with handlers and without. */
static void jobs(void)
{
	siginfo_t info;

	for (int i = 0; i < 4; i++) {
		static const int stops[] = { SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU };
		int pair[2], ready[2];
		char byte;

		fflush(stdout);
		if (pipe(pair) || pipe(ready))
			_exit(98);
		pid_t child = fork();

		if (!child) {
			setpgid(0, 0);
			close(pair[1]);
			install(SIGCONT, note, SA_RESTART);
			(void)!write(ready[1], "x", 1);
			(void)!read(pair[0], &byte, 1);
			_exit(count == 1 ? 20 : 21);
		}
		close(pair[0]);
		(void)!read(ready[0], &byte, 1);
		kill(child, stops[i]);
		waitid(P_PID, child, &info, WSTOPPED);
		printf("stopped %d by %d\n", info.si_code == CLD_STOPPED, info.si_status);
		/* A stop leaves other signals waiting. */
		kill(child, SIGCONT);
		waitid(P_PID, child, &info, WCONTINUED);
		printf("continued %d\n", info.si_code == CLD_CONTINUED);
		close(pair[1]);
		waitid(P_PID, child, &info, WEXITED);
		printf("ended %d with %d\n", info.si_code == CLD_EXITED, info.si_status);
	}
	fflush(stdout);
	pid_t child = fork();

	if (!child) {
		install(SIGTSTP, note, 0);
		raise(SIGTSTP);
		_exit(count);
	}
	waitid(P_PID, child, &info, WEXITED | WSTOPPED);
	printf("with a handler: ended %d with %d\n", info.si_code == CLD_EXITED, info.si_status);
}

/* Who sent it: a child, with its user, and what the kernel tells of an end. */
static void senders(void)
{
	sigset_t blocked;
	siginfo_t info;

	sigfillset(&blocked);
	sigprocmask(SIG_SETMASK, &blocked, NULL);
	for (int i = 0; i < SENT; i++) {
		sigset_t set = only(sent[i]), child_set = only(SIGCHLD);
		pid_t parent = getpid(), child = fork();

		if (!child) {
			sigqueue(parent, sent[i], (union sigval){ .sival_int = i });
			_exit(i);
		}
		printf("%d", sigwaitinfo(&set, &info) == sent[i]);
		printf(" code %d value %d from the child %d user %d;", info.si_code, info.si_value.sival_int,
		       info.si_pid == child, info.si_uid == getuid());
		printf(" %d", sigwaitinfo(&child_set, &info) == SIGCHLD);
		printf(" code %d status %d\n", info.si_code, info.si_status);
		reap(child);
	}
	signal(SIGPIPE, SIG_DFL);
	if (pipe(ends))
		_exit(98);
	close(ends[0]);
	printf("broken pipe: %s", outcome(write(ends[1], "x", 1)));
	sigset_t set = only(SIGPIPE);

	printf(", pending %d", sigwaitinfo(&set, &info) == SIGPIPE);
	printf(", code %d, from itself %d\n", info.si_code, info.si_pid == getpid());
}

static void in_vfork(int number, siginfo_t *info, void *context)
{
	note(number, info, context);
}

/* A vfork child's handlers and mask are its own. */
static void vforked(void)
{
	struct sigaction now;
	sigset_t set = only(SIGUSR2), mask;
	int status;

	install(SIGUSR1, in_vfork, 0);
	install(SIGSEGV, in_vfork, 0);
	pid_t child = vfork();

	if (!child) {
		signal(SIGUSR1, SIG_IGN);
		signal(SIGSEGV, SIG_DFL);
		sigprocmask(SIG_BLOCK, &set, NULL);
		raise(SIGUSR1);
		_exit(count);
	}
	waitpid(child, &status, 0);
	printf("child %d\n", WEXITSTATUS(status));
	raise(SIGUSR1);
	raise(SIGSEGV);
	sigprocmask(SIG_BLOCK, NULL, &mask);
	sigaction(SIGSEGV, NULL, &now);
	printf("handled %d, blocked %d, handler kept %d\n", count, sigismember(&mask, SIGUSR2), now.sa_sigaction == in_vfork);
}

int main(int argc, char **argv)
{
	static const struct mode modes[] = {
		{ "suspend", suspend },	     { "ppoll", ppoll_mode },	  { "pselect", pselect_mode },
		{ "epoll", epoll_mode },     { "timedwait", timedwait },  { "waiting-thread", waiting_thread },
		{ "open-thread", open_thread_mode }, { "pending", pending }, { "signalfd", descriptors },
		{ "queue", queue },	     { "directed", directed },	  { "restarting", restarting },
		{ "failing", failing },	     { "storm", storm },	  { "timers", timers },
		{ "files", files },	     { "jobs", jobs },		  { "senders", senders },
		{ "vforked", vforked },
	};

	setvbuf(stdout, NULL, _IOLBF, 0);
	return run_mode(modes, COUNT(modes), argc > 1 ? argv[1] : NULL);
}
