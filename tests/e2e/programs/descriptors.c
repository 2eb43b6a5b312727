/*
 * Programs that close what they do not know. Modes: "close-range", "close-all" (one by one), "lowest" (a new
 * descriptor gets the lowest free number), "duplicates" (dup2 to high numbers), "look" (at every number). After each it opens a file, forks
 * and runs a shell: nothing that anybody needs may be gone.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	const char *mode = argc > 1 ? argv[1] : "";
	int status;

	setvbuf(stdout, NULL, _IONBF, 0);
	if (!strcmp(mode, "close-range")) {
		printf("close_range: %ld\n", syscall(SYS_close_range, 3, ~0U, 0));
	} else if (!strcmp(mode, "close-all")) {
		for (int i = 3; i < 4096; i++)
			close(i);
	} else if (!strcmp(mode, "duplicates")) {
		for (int i = 3; i < 300; i++)
			if (dup2(1, i) != i)
				printf("dup2 to %d: %s\n", i, strerror(errno));
		for (int i = 3; i < 300; i++)
			close(i);
	} else if (!strcmp(mode, "look")) {
		struct stat about;
		int flags = 0, stats = 0, paths = 0, copies = 0;

		/* What was left open by whoever started this would be copied to every number. */
		syscall(SYS_close_range, 3, ~0U, 0);
		for (int i = 3; i < 4096; i++) {
			flags += fcntl(i, F_GETFD) >= 0;
			stats += !syscall(SYS_fstat, i, &about);
			paths += !fstatat(i, "", &about, AT_EMPTY_PATH);
			copies += dup(i) >= 0;
		}
		printf("there are %d, %d, %d, %d\n", flags, stats, paths, copies);
	}
	int first = open("/dev/null", O_RDONLY), second = dup(first);

	printf("next numbers: %d %d\n", first, second);
	pid_t child = fork();

	if (!child)
		_exit(open("/dev/null", O_RDONLY));
	waitpid(child, &status, 0);
	printf("in a child: %d\n", WEXITSTATUS(status));
	printf("shell: %d\n", WEXITSTATUS(system("exit 21")));
	return 0;
}
