/*
 * Starts the program that its arguments name, and traces it from its first instruction to its end, as debuggers do that
 * know nothing of usgx. Ends as the program does.
 */
#include <signal.h>
#include <stdio.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	const pid_t child = argc > 1 ? fork() : -1;
	int status;

	if (!child) {
		ptrace(PTRACE_TRACEME, 0, NULL, NULL);
		execv(argv[1], argv + 1);
		perror(argv[1]);
		_exit(99);
	}
	while (waitpid(child, &status, 0) == child) {
		if (WIFEXITED(status))
			return WEXITSTATUS(status);
		if (WIFSIGNALED(status))
			return 128 + WTERMSIG(status);
		const int signal = WSTOPSIG(status);

		ptrace(PTRACE_CONT, child, NULL, signal == SIGTRAP ? 0L : (long)signal);
	}
	return 98;
}
