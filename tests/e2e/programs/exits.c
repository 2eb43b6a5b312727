/*
 * Ends in the way that its arguments ask for: "status N", "signal N", "abort", "thread N" (exit from another
 * thread while the first one waits), "return N". Prints a line first, so that lost output shows.
 */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void *end_all(void *status)
{
	exit(*(int *)status);
}

int main(int argc, char **argv)
{
	int number = argc > 2 ? atoi(argv[2]) : 0;
	pthread_t thread;

	printf("ending by %s %d\n", argv[1], number);
	if (!strcmp(argv[1], "status"))
		exit(number);
	if (!strcmp(argv[1], "return"))
		return number;
	if (!strcmp(argv[1], "thread")) {
		pthread_create(&thread, NULL, end_all, &number);
		pthread_join(thread, NULL);
	}
	fflush(stdout);
	if (!strcmp(argv[1], "abort"))
		abort();
	raise(number);
	pause();
	return 99;
}
