/*
 * Threads in numbers and in trouble: many at once, tiny stacks, cancellation, owners that die, ends while others are at
 * work. Modes are the names in the table at the end.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/rseq.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "modes.h"

enum { CROWD = 1000 };

static volatile int count, handled;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static const char *self_path;

static void install(int number, void (*handler)(int))
{
	struct sigaction action = { .sa_handler = handler, .sa_flags = SA_RESTART };

	sigaction(number, &action, NULL);
}

static void note(int number)
{
	(void)number;
	__atomic_fetch_add(&handled, 1, __ATOMIC_SEQ_CST);
}

static void arrive(void)
{
	__atomic_fetch_add(&count, 1, __ATOMIC_SEQ_CST);
}

static void wait_for(volatile int *what, int least)
{
	while (*what < least)
		usleep(500);
}

static void *stand_and_wait(void *unused)
{
	pthread_mutex_lock(&lock);
	count++;
	pthread_cond_broadcast(&changed);
	while (count < CROWD)
		pthread_cond_wait(&changed, &lock);
	pthread_mutex_unlock(&lock);
	raise(SIGUSR1);
	return unused;
}

static void start(pthread_t *threads, int number, size_t stack, void *(*run)(void *))
{
	pthread_attr_t how;

	pthread_attr_init(&how);
	pthread_attr_setstacksize(&how, stack);
	for (int i = 0; i < number; i++) {
		int error = pthread_create(&threads[i], &how, run, (void *)(intptr_t)i);

		if (error) {
			printf("thread %d: %s\n", i, strerror(error));
			exit(98);
		}
	}
	pthread_attr_destroy(&how);
}

static void thousand(void)
{
	static pthread_t threads[CROWD];

	install(SIGUSR1, note);
	start(threads, CROWD, 65536, stand_and_wait);
	for (int i = 0; i < CROWD; i++)
		pthread_join(threads[i], NULL);
	printf("%d at once, %d handled\n", count, handled);
}

static void skip(int number, siginfo_t *info, void *context)
{
	(void)number;
	(void)info;
	((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP] += 2;
	note(number);
}

static void *little_room(void *unused)
{
	for (int i = 0; i < 50; i++) {
		__asm__ volatile("ud2");
		raise(SIGUSR1);
		int file = open("/dev/null", O_RDONLY);

		close(file);
	}
	return unused;
}

static void small(void)
{
	struct sigaction action = { .sa_sigaction = skip, .sa_flags = SA_SIGINFO };
	pthread_t threads[50];

	install(SIGUSR1, note);
	sigaction(SIGILL, &action, NULL);
	start(threads, 50, PTHREAD_STACK_MIN, little_room);
	for (int i = 0; i < 50; i++)
		pthread_join(threads[i], NULL);
	printf("stacks of %d KiB: %d handled\n", (int)PTHREAD_STACK_MIN / 1024, handled);
}

static void cleaned(void *unused)
{
	(void)unused;
	arrive();
}

static int pipe_ends[2];

static void unlock(void *what)
{
	pthread_mutex_unlock(what);
}

/* Blocks in one of several calls, to be cancelled there. */
static void *block(void *argument)
{
	struct timespec long_time = { 20, 0 };
	sigset_t set;
	char byte;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	pthread_cleanup_push(cleaned, NULL);
	handled++;
	switch ((intptr_t)argument) {
	case 0: (void)!read(pipe_ends[0], &byte, 1); break;
	case 1: poll(NULL, 0, 20000); break;
	case 2: ppoll(NULL, 0, &long_time, &set); break;
	case 3: nanosleep(&long_time, NULL); break;
	case 4: pause(); break;
	case 5: sigsuspend(&set); break;
	case 6: sigtimedwait(&set, NULL, &long_time); break;
	case 7: pselect(0, NULL, NULL, NULL, &long_time, &set); break;
	case 8: sleep(20); break;
	case 9: waitpid(-1, NULL, 0); break;
	case 10:
		pthread_mutex_lock(&lock);
		pthread_cleanup_push(unlock, &lock);
		pthread_cond_wait(&changed, &lock);
		pthread_cleanup_pop(1);
		break;
	default:
		for (;;)
			pthread_testcancel();
	}
	pthread_cleanup_pop(0);
	return NULL;
}

static void cancel(void)
{
	int cancelled = 0;

	if (pipe(pipe_ends))
		exit(98);
	pid_t child = fork();

	if (!child) {
		pause();
		_exit(0);
	}
	for (intptr_t i = 0; i < 12; i++) {
		pthread_t thread;
		void *result;

		handled = 0;
		pthread_create(&thread, NULL, block, (void *)i);
		wait_for(&handled, 1);
		usleep(20000);
		pthread_cancel(thread);
		pthread_join(thread, &result);
		cancelled += result == PTHREAD_CANCELED;
	}
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	printf("%d cancelled, %d cleaned up\n", cancelled, count);
}

static void *spin(void *unused)
{
	pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, NULL);
	pthread_cleanup_push(cleaned, NULL);
	handled++;
	for (;;)
		__asm__ volatile("");
	pthread_cleanup_pop(0);
	return unused;
}

static void cancel_async(void)
{
	int cancelled = 0;

	for (int i = 0; i < 10; i++) {
		pthread_t thread;
		void *result;

		handled = 0;
		pthread_create(&thread, NULL, spin, NULL);
		wait_for(&handled, 1);
		pthread_cancel(thread);
		pthread_join(thread, &result);
		cancelled += result == PTHREAD_CANCELED;
	}
	printf("%d cancelled, %d cleaned up\n", cancelled, count);
}

static pthread_mutex_t *robust;

static void *die_with_it(void *unused)
{
	pthread_mutex_lock(robust);
	return unused;
}

static void take_over(const char *who)
{
	int error = pthread_mutex_lock(robust);

	printf("%s: %s", who, strerror(error));
	printf(", made whole %d", pthread_mutex_consistent(robust));
	printf(", unlocked %d\n", pthread_mutex_unlock(robust));
}

static void robust_mutex(void)
{
	pthread_mutexattr_t how;
	pthread_t thread;

	robust = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pthread_mutexattr_init(&how);
	pthread_mutexattr_setrobust(&how, PTHREAD_MUTEX_ROBUST);
	pthread_mutexattr_setpshared(&how, PTHREAD_PROCESS_SHARED);
	pthread_mutex_init(robust, &how);
	pthread_create(&thread, NULL, die_with_it, NULL);
	pthread_join(thread, NULL);
	take_over("a thread that ended");
	fflush(stdout);
	for (int way = 0; way < 4; way++) {
		pid_t child = fork();

		if (!child) {
			pthread_mutex_lock(robust);
			if (way == 0)
				_exit(0);
			if (way == 1)
				kill(getpid(), SIGKILL);
			if (way == 2)
				execl(self_path, self_path, "nothing", (char *)NULL);
			/* The first thread ends with the lock; the second waits for it, gets it and ends with it. */
			pthread_create(&thread, NULL, die_with_it, NULL);
			syscall(SYS_exit, 0);
		}
		waitpid(child, NULL, 0);
		take_over("a process that ended");
	}
}

static int rseq_right(void)
{
	struct rseq *area = (struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset);

	if (__rseq_size == 0)
		return 1;
	/* The kernel keeps the number up to date; a move in between is possible, twice in a row hardly. */
	for (int i = 0; i < 100; i++)
		if ((int)area->cpu_id == sched_getcpu())
			return 1;
	return 0;
}

static void *rseq_thread(void *unused)
{
	struct timespec moment = { 0, 1000000 };
	intptr_t right = 0;

	for (int i = 0; i < 20; i++) {
		raise(SIGUSR1);
		nanosleep(&moment, NULL);
		right += rseq_right();
	}
	(void)unused;
	return (void *)right;
}

static void rseq_mode(void)
{
	pthread_t threads[10];
	intptr_t right = 0;
	int status;

	install(SIGUSR1, note);
	start(threads, 10, 65536, rseq_thread);
	for (int i = 0; i < 10; i++) {
		void *result;

		pthread_join(threads[i], &result);
		right += (intptr_t)result;
	}
	pid_t child = fork();

	if (!child)
		_exit(rseq_right());
	waitpid(child, &status, 0);
	printf("registered %d, right %ld, in a child %d\n", __rseq_size != 0, (long)right, WEXITSTATUS(status));
}

static void *outlive(void *main_thread)
{
	pthread_join(*(pthread_t *)main_thread, NULL);
	printf("the first thread has ended\n");
	fflush(stdout);
	usleep(20000);
	exit(23);
}

static void first_ends(void)
{
	static pthread_t self;
	pthread_t thread;

	self = pthread_self();
	pthread_create(&thread, NULL, outlive, &self);
	pthread_exit(NULL);
}

static _Noreturn void be_busy(void *argument)
{
	char byte;

	arrive();
	for (;;) {
		switch ((intptr_t)argument % 4) {
		case 0: break;
		case 1: (void)!read(pipe_ends[0], &byte, 1); break;
		case 2: close(open("/dev/null", O_RDONLY)); break;
		case 3: raise(SIGUSR1); break;
		}
	}
}

static void *busy(void *argument)
{
	be_busy(argument);
}

static void group_ends(void)
{
	pthread_t threads[40];
	int status, right = 0;

	install(SIGUSR1, note);
	if (pipe(pipe_ends))
		exit(98);
	fflush(stdout);
	for (int i = 0; i < 10; i++) {
		pid_t child = fork();

		if (!child) {
			start(threads, 40, 65536, busy);
			wait_for(&count, 40);
			if (i % 2)
				_exit(17);
			kill(getpid(), SIGKILL);
		}
		waitpid(child, &status, 0);
		right += i % 2 ? status == 17 << 8 : status == SIGKILL;
	}
	printf("%d ended as they should\n", right);
}

static void *exec_now(void *unused)
{
	wait_for(&count, 40);
	execl(self_path, self_path, "nothing", (char *)NULL);
	return unused;
}

static void exec_ends(void)
{
	pthread_t threads[40], thread;
	int status, right = 0;

	install(SIGUSR1, note);
	if (pipe(pipe_ends))
		exit(98);
	for (int i = 0; i < 5; i++) {
		pid_t child = fork();

		if (!child) {
			start(threads, 40, 65536, busy);
			pthread_create(&thread, NULL, exec_now, NULL);
			pthread_exit(NULL);
		}
		right += waitpid(child, &status, 0) == child && status == 12 << 8;
	}
	printf("%d replaced\n", right);
}

static pthread_key_t key;

static void destroy(void *value)
{
	(void)value;
	arrive();
}

static void *keep_value(void *argument)
{
	pthread_setspecific(key, argument + 1);
	return argument;
}

static void keys(void)
{
	pthread_t threads[100];

	pthread_key_create(&key, destroy);
	start(threads, 100, 65536, keep_value);
	for (int i = 0; i < 100; i++)
		pthread_join(threads[i], NULL);
	printf("%d destroyed\n", count);
}

static void *detached(void *unused)
{
	pthread_detach(pthread_self());
	arrive();
	return unused;
}

static void detach(void)
{
	pthread_t thread;

	for (int i = 0; i < 2000; i++) {
		while (pthread_create(&thread, NULL, detached, NULL))
			usleep(1000);
	}
	wait_for(&count, 2000);
	printf("%d came and went\n", count);
}

static void before(void)
{
	count++;
}

static void after(void)
{
	handled++;
}

static volatile int fork_now;

static void *allocate(void *unused)
{
	while (!fork_now)
		free(malloc(rand() % 5000));
	return unused;
}

static void at_fork(void)
{
	pthread_t threads[4];
	int status, right = 0;

	pthread_atfork(before, after, after);
	start(threads, 4, 65536, allocate);
	for (int i = 0; i < 50; i++) {
		pid_t child = fork();

		if (!child) {
			free(malloc(100000));
			_exit(handled == i + 1);
		}
		waitpid(child, &status, 0);
		right += WEXITSTATUS(status);
	}
	fork_now = 1;
	for (int i = 0; i < 4; i++)
		pthread_join(threads[i], NULL);
	printf("%d before, %d after, %d right\n", count, handled, right);
}

static void *idle(void *unused)
{
	arrive();
	pause();
	return unused;
}

/* The C library makes all threads change, by a signal of its own. */
static void identities(void)
{
	pthread_t threads[20];

	start(threads, 20, 65536, idle);
	wait_for(&count, 20);
	printf("setgid %d", setgid(getgid()));
	printf(", setuid %d", setuid(getuid()));
	printf(", setresuid %d\n", setresuid(-1, getuid(), -1));
}

static void on_timer(union sigval value)
{
	handled += value.sival_int;
}

static void timer_threads(void)
{
	struct sigevent event = { .sigev_notify = SIGEV_THREAD, .sigev_value.sival_int = 1 };
	struct itimerspec often = { { 0, 2000000 }, { 0, 2000000 } };
	timer_t timer;

	event.sigev_notify_function = on_timer;
	printf("create %d", timer_create(CLOCK_MONOTONIC, &event, &timer));
	printf(", set %d\n", timer_settime(timer, 0, &often, NULL));
	wait_for(&handled, 20);
	printf("twenty times\n");
}

static pthread_barrier_t barrier;

static void *meet(void *unused)
{
	for (int i = 0; i < 20; i++)
		if (pthread_barrier_wait(&barrier) == PTHREAD_BARRIER_SERIAL_THREAD)
			arrive();
	return unused;
}

static void barriers(void)
{
	pthread_t threads[30];

	pthread_barrier_init(&barrier, NULL, 30);
	start(threads, 30, 65536, meet);
	for (int i = 0; i < 30; i++)
		pthread_join(threads[i], NULL);
	printf("met %d times\n", count);
}

static void *storm(void *unused)
{
	for (int i = 0; i < 200; i++) {
		sigset_t set, old;

		sigfillset(&set);
		pthread_sigmask(SIG_BLOCK, &set, &old);
		handled += sigismember(&old, SIGUSR2);
		pthread_sigmask(SIG_SETMASK, &old, NULL);
		raise(SIGUSR1);
	}
	return unused;
}

static void under_fire(void)
{
	pthread_t threads[20];

	install(SIGUSR1, SIG_IGN);
	install(SIGUSR2, SIG_IGN);
	install(SIGALRM, note);
	start(threads, 20, 65536, storm);
	for (int i = 0; i < 1000; i++) {
		/* Ended threads are not signalled: they are joined below. */
		kill(getpid(), i % 2 ? SIGUSR2 : SIGUSR1);
	}
	for (int i = 0; i < 20; i++)
		pthread_join(threads[i], NULL);
	printf("masks wrong %d\n", handled);
}

static void nothing(void)
{
	exit(12);
}

int main(int argc, char **argv)
{
	static const struct mode modes[] = {
		{ "thousand", thousand }, { "small", small },	      { "cancel", cancel },
		{ "cancel-async", cancel_async }, { "robust", robust_mutex }, { "rseq", rseq_mode },
		{ "first-ends", first_ends }, { "group-ends", group_ends }, { "exec-ends", exec_ends },
		{ "keys", keys },	  { "detach", detach },	      { "at-fork", at_fork },
		{ "identities", identities }, { "timer-threads", timer_threads }, { "barriers", barriers },
		{ "under-fire", under_fire }, { "nothing", nothing },
	};

	setvbuf(stdout, NULL, _IOLBF, 0);
	self_path = argv[0];
	return run_mode(modes, COUNT(modes), argc > 1 ? argv[1] : NULL);
}
