/*
 * Prints its process ID alone, or with "relations" what is true of it in its session: the same facts hold for
 * a program that is started directly.
 */
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	(void)argv;
	if (argc == 1) {
		printf("%d\n", getpid());
		return 0;
	}
	printf("first thread: %d\n", (int)(syscall(SYS_gettid) == getpid()));
	printf("leads its group: %d\n", (int)(getpgrp() == getpid()));
	printf("leads its session: %d\n", (int)(getsid(0) == getpid()));
	return 0;
}
