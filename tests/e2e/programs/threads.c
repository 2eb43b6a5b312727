/*
 * Threads. Modes: "basic" (100 threads with thread-local data and a lock), "signals" (each of 50 gets a signal of
 * its own), "fork" (a thread forks), "exec" (a thread that is not the first one replaces the program), "many"
 * (1000 threads, one after the other).
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { THREADS = 100, SIGNALLED = 50 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static long sum;
static __thread long own;
static atomic_int handled, ready;
static pthread_t signalled[SIGNALLED];
static __thread int index_of_thread = -1;
static atomic_int wrong_thread;
static const char *self_path;

static void *add(void *argument)
{
	long number = (long)argument;

	for (int i = 0; i < 1000; i++)
		own += number;
	for (int i = 0; i < 100; i++) {
		pthread_mutex_lock(&lock);
		sum += own / 1000;
		pthread_mutex_unlock(&lock);
	}
	return (void *)(own / 1000);
}

static void basic(void)
{
	pthread_t threads[THREADS];
	int right = 0;

	for (long i = 0; i < THREADS; i++)
		if (pthread_create(&threads[i], NULL, add, (void *)i))
			printf("cannot create thread %ld\n", i);
	for (long i = 0; i < THREADS; i++) {
		void *result;

		pthread_join(threads[i], &result);
		right += result == (void *)i;
	}
	printf("%d threads, sum %ld\n", right, sum);
}

static void on_signal(int number)
{
	(void)number;
	if (index_of_thread < 0 || !pthread_equal(signalled[index_of_thread], pthread_self()))
		atomic_fetch_add(&wrong_thread, 1);
	atomic_fetch_add(&handled, 1);
}

static void *wait_for_signal(void *argument)
{
	index_of_thread = (int)(long)argument;
	atomic_fetch_add(&ready, 1);
	while (atomic_load(&handled) < SIGNALLED)
		usleep(1000);
	return NULL;
}

static void with_signals(void)
{
	struct sigaction action = { .sa_handler = on_signal };

	sigaction(SIGUSR1, &action, NULL);
	for (long i = 0; i < SIGNALLED; i++)
		pthread_create(&signalled[i], NULL, wait_for_signal, (void *)i);
	while (atomic_load(&ready) < SIGNALLED)
		usleep(1000);
	for (int i = 0; i < SIGNALLED; i++)
		pthread_kill(signalled[i], SIGUSR1);
	for (int i = 0; i < SIGNALLED; i++)
		pthread_join(signalled[i], NULL);
	printf("%d handled, %d in the wrong thread\n", atomic_load(&handled), atomic_load(&wrong_thread));
}

static void *fork_here(void *argument)
{
	int status;
	pid_t child = fork();

	(void)argument;
	if (!child)
		_exit(own == 0 ? 7 : 8);
	waitpid(child, &status, 0);
	printf("child of a thread: %d\n", WEXITSTATUS(status));
	return NULL;
}

static void *exec_here(void *argument)
{
	char pid[16];

	(void)argument;
	snprintf(pid, sizeof(pid), "%d", getpid());
	execl(self_path, self_path, "after-exec", pid, (char *)NULL);
	printf("exec failed\n");
	return NULL;
}

static void *nothing(void *argument)
{
	return argument;
}

int main(int argc, char **argv)
{
	pthread_t thread;
	const char *mode = argc > 1 ? argv[1] : "";

	self_path = argv[0];
	if (!strcmp(mode, "basic")) {
		basic();
	} else if (!strcmp(mode, "signals")) {
		with_signals();
	} else if (!strcmp(mode, "fork")) {
		pthread_create(&thread, NULL, fork_here, NULL);
		pthread_join(thread, NULL);
	} else if (!strcmp(mode, "exec")) {
		pthread_create(&thread, NULL, exec_here, NULL);
		pause();
	} else if (!strcmp(mode, "after-exec")) {
		char pid[16];

		snprintf(pid, sizeof(pid), "%d", getpid());
		printf("same process: %d\n", !strcmp(pid, argv[2]));
	} else {
		int joined = 0;

		for (int i = 0; i < 1000; i++)
			joined += !pthread_create(&thread, NULL, nothing, NULL) && !pthread_join(thread, NULL);
		printf("%d came and went\n", joined);
	}
	return 0;
}
