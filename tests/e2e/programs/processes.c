/*
 * Processes that make processes. Modes: "fork", "vfork", "vfork-fails", "spawn", "spawn-fails", "chain N" (replaces
 * itself N times), "daemon" (forks twice and leaves), "storm" (50 children at once), "missing" (an exec that fails
 * is survived), "fexecve", "shell" (system and popen), "environment" (exec with another environment), "stopped"
 * (a child is stopped and continued), "deep" (children of children), "clone" (clone with a stack of its own).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

static void say_status(const char *who, int status)
{
	if (WIFEXITED(status))
		printf("%s: exit %d\n", who, WEXITSTATUS(status));
	else if (WIFSIGNALED(status))
		printf("%s: signal %d\n", who, WTERMSIG(status));
	else
		printf("%s: status %#x\n", who, status);
}

static void say_end(const char *who, pid_t child)
{
	int status = 0;

	if (waitpid(child, &status, 0) != child)
		printf("%s: waitpid: %s\n", who, strerror(errno));
	else
		say_status(who, status);
}

static void do_fork(void)
{
	int value = 1, end[2];
	pid_t parent = getpid(), child;

	if (pipe(end))
		exit(98);
	child = fork();
	if (!child) {
		char right = getppid() == parent && getpid() != parent ? 'y' : 'n';

		value = 2;
		if (write(end[1], &right, 1) != 1)
			_exit(97);
		_exit(11);
	}
	char right = '?';

	if (read(end[0], &right, 1) != 1)
		right = '-';
	say_end("child", child);
	printf("relations %c, own copy %d\n", right, value);
}

static void do_vfork(const char *program)
{
	volatile int shared = 0;
	pid_t child = vfork();

	if (!child) {
		shared = 42;
		execl(program, program, "exit", "3", (char *)NULL);
		_exit(errno == ENOENT ? 127 : 126);
	}
	say_end("child of vfork", child);
	printf("shared %d\n", shared);
}

static void do_spawn(const char *program)
{
	char *arguments[] = { "processes", "say", "spoken by a spawned child", NULL };
	posix_spawn_file_actions_t actions;
	char text[64] = "";
	int end[2];
	pid_t child;

	if (pipe(end))
		exit(98);
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_adddup2(&actions, end[1], 1);
	posix_spawn_file_actions_addclose(&actions, end[0]);
	int error = posix_spawn(&child, program, &actions, NULL, arguments, environ);

	close(end[1]);
	printf("spawn: %s\n", error ? strerror(error) : "fine");
	if (error)
		return;
	ssize_t length = read(end[0], text, sizeof(text) - 1);

	printf("read %zd: %s\n", length, text);
	say_end("spawned", child);
}

static void do_daemon(void)
{
	char text[64] = "";
	int end[2];

	if (pipe(end))
		exit(98);
	pid_t child = fork();

	if (!child) {
		setsid();
		if (fork())
			_exit(0);
		pid_t middle = getppid();

		close(end[0]);
		for (int i = 0; i < 1000 && getppid() == middle && middle != 1; i++)
			usleep(1000);
		dprintf(end[1], "daemon at work, leads no session: %d", getsid(0) != getpid());
		_exit(0);
	}
	close(end[1]);
	say_end("middle", child);
	ssize_t length = read(end[0], text, sizeof(text) - 1);

	printf("%zd %s\n", length, text);
}

static void do_storm(void)
{
	pid_t children[50];
	int sum = 0, status;

	for (int i = 0; i < 50; i++) {
		children[i] = fork();
		if (!children[i])
			_exit(i);
	}
	for (int i = 0; i < 50; i++) {
		if (waitpid(children[i], &status, 0) == children[i] && WIFEXITED(status))
			sum += WEXITSTATUS(status);
	}
	printf("sum of statuses %d\n", sum);
}

static void do_stopped(void)
{
	int status, end[2];
	char byte;

	if (pipe(end))
		exit(98);
	pid_t child = fork();

	if (!child) {
		close(end[1]);
		raise(SIGSTOP);
		/* Lives until the parent has seen it go on. */
		_exit(read(end[0], &byte, 1) == 0 ? 4 : 5);
	}
	waitpid(child, &status, WUNTRACED);
	printf("stopped %d by %d\n", WIFSTOPPED(status), WSTOPSIG(status));
	kill(child, SIGCONT);
	waitpid(child, &status, WCONTINUED);
	printf("continued %d\n", WIFCONTINUED(status));
	close(end[1]);
	say_end("at last", child);
	child = fork();
	if (!child)
		for (;;)
			pause();
	kill(child, SIGKILL);
	say_end("killed", child);
}

static int deep(int levels)
{
	int status;
	pid_t child;

	if (!levels)
		return 9;
	child = fork();
	if (!child)
		_exit(deep(levels - 1));
	waitpid(child, &status, 0);
	return WEXITSTATUS(status);
}

static int in_clone(void *argument)
{
	return *(int *)argument;
}

int main(int argc, char **argv)
{
	const char *mode = argc > 1 ? argv[1] : "";

	setvbuf(stdout, NULL, _IONBF, 0);
	if (!strcmp(mode, "exit")) {
		return atoi(argv[2]);
	} else if (!strcmp(mode, "say")) {
		printf("%s", argv[2]);
	} else if (!strcmp(mode, "fork")) {
		do_fork();
	} else if (!strcmp(mode, "vfork")) {
		do_vfork(argv[0]);
	} else if (!strcmp(mode, "vfork-fails")) {
		do_vfork("/nonexistent/program");
	} else if (!strcmp(mode, "spawn")) {
		do_spawn(argv[0]);
	} else if (!strcmp(mode, "spawn-fails")) {
		do_spawn("/nonexistent/program");
	} else if (!strcmp(mode, "chain")) {
		char left[16], pid[16];
		int links = atoi(argv[2]);

		snprintf(left, sizeof(left), "%d", links - 1);
		snprintf(pid, sizeof(pid), "%d", getpid());
		if (argc > 3 && strcmp(argv[3], pid))
			printf("another process\n");
		printf("%d left\n", links);
		if (links)
			execl(argv[0], argv[0], "chain", left, pid, (char *)NULL);
		return links ? 99 : 6;
	} else if (!strcmp(mode, "daemon")) {
		do_daemon();
	} else if (!strcmp(mode, "storm")) {
		do_storm();
	} else if (!strcmp(mode, "missing")) {
		execl("/nonexistent/program", "program", (char *)NULL);
		printf("missing: %s\n", strerror(errno));
		execl("/", "program", (char *)NULL);
		printf("a directory: %s\n", strerror(errno));
		execl("/etc/passwd", "program", (char *)NULL);
		printf("not executable: %s\n", strerror(errno));
		execl(argv[0], argv[0], "exit", "5", (char *)NULL);
	} else if (!strcmp(mode, "fexecve")) {
		char *arguments[] = { argv[0], "exit", "8", NULL };
		int file = open(argv[0], O_RDONLY | O_CLOEXEC);

		fexecve(file, arguments, environ);
		printf("fexecve: %s\n", strerror(errno));
	} else if (!strcmp(mode, "shell")) {
		char line[64] = "";
		FILE *stream;

		say_status("system", system("exit 3"));
		stream = popen("echo from a shell; kill -9 $$", "r");
		if (stream && fgets(line, sizeof(line), stream))
			printf("%s", line);
		if (stream)
			say_status("popen", pclose(stream));
	} else if (!strcmp(mode, "environment")) {
		char *variables[] = { "E2E_NEW=yes", NULL };

		if (argc > 2) {
			for (char **variable = environ; *variable; variable++)
				printf("%s\n", *variable);
			return 0;
		}
		execle(argv[0], argv[0], "environment", "show", (char *)NULL, variables);
	} else if (!strcmp(mode, "stopped")) {
		do_stopped();
	} else if (!strcmp(mode, "deep")) {
		printf("from the bottom: %d\n", deep(10));
	} else if (!strcmp(mode, "clone")) {
		static char stack[65536] __attribute__((aligned(16)));
		int number = 17;

		say_end("clone", clone(in_clone, stack + sizeof(stack), SIGCHLD, &number));
		say_end("clone with shared memory",
			clone(in_clone, stack + sizeof(stack), CLONE_VM | SIGCHLD, &number));
	} else {
		return 99;
	}
	return 0;
}
