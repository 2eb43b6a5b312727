/*
 * Memory calls that a filter may look at, on ordinary memory: they have to do what they always do. Modes: "fixed",
 * "shared" (a file mapped by two processes), "mremap", "protect", "advice", "heap", "child" (MADV_DONTFORK and
 * copy on write).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096 };

static sigjmp_buf back;

static void on_fault(int number)
{
	siglongjmp(back, number);
}

/* The signal that reading (or writing) one byte raises, 0 if none. */
static int touch(volatile char *byte, int write_it)
{
	int number = sigsetjmp(back, 1);

	if (!number) {
		if (write_it)
			*byte = 1;
		else
			(void)*byte;
	}
	return number;
}

static char *map(size_t pages, int protection)
{
	return mmap(NULL, pages * PAGE, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_handler = on_fault };
	const char *mode = argc > 1 ? argv[1] : "";
	char *memory = map(8, PROT_READ | PROT_WRITE);

	sigaction(SIGSEGV, &action, NULL);
	sigaction(SIGBUS, &action, NULL);
	if (!strcmp(mode, "fixed")) {
		memory[PAGE] = 5;
		char *again = mmap(memory + PAGE, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);

		printf("same place %d, empty %d, write %d\n", again == memory + PAGE, !again[0], touch(again, 1));
		again = mmap(memory, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
		printf("not replaced: %s\n", again == MAP_FAILED ? strerror(errno) : "replaced");
		again = mmap(memory + 1, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
		printf("unaligned: %s\n", again == MAP_FAILED ? strerror(errno) : "mapped");
	} else if (!strcmp(mode, "shared")) {
		int file = memfd_create("shared", 0), status;

		if (ftruncate(file, 2 * PAGE))
			return 98;
		char *shared = mmap(NULL, 3 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
		pid_t child = fork();

		if (!child) {
			shared[1] = 77;
			_exit(0);
		}
		waitpid(child, &status, 0);
		printf("from the child %d, past the end %d\n", shared[1], touch(shared + 2 * PAGE, 0));
		shared = mmap(memory, PAGE, PROT_READ, MAP_SHARED | MAP_FIXED, file, 0);
		printf("fixed %d: %d\n", shared == memory, shared[1]);
	} else if (!strcmp(mode, "mremap")) {
		memory[0] = 9;
		char *moved = mremap(memory, 8 * PAGE, 64 * PAGE, MREMAP_MAYMOVE);

		printf("kept %d, grown %d\n", moved[0], touch(moved + 63 * PAGE, 1));
		char *target = map(2, PROT_NONE);

		moved = mremap(moved, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, target);
		printf("moved %d, kept %d\n", moved == target, moved[0]);
		moved = mremap((void *)PAGE, PAGE, PAGE, MREMAP_MAYMOVE);
		printf("nothing there: %s\n", moved == MAP_FAILED ? strerror(errno) : "moved");
	} else if (!strcmp(mode, "protect")) {
		printf("%d", mprotect(memory, PAGE, PROT_READ));
		printf(" %d %d", touch(memory, 0), touch(memory, 1));
		printf(" %d", mprotect(memory, PAGE, PROT_NONE));
		printf(" %d", touch(memory, 0));
		printf(" %d", mprotect(memory, PAGE, PROT_READ | PROT_WRITE));
		printf(" %d\n", touch(memory, 1));
		munmap(memory + 4 * PAGE, PAGE);
		printf("over a hole %d", mprotect(memory, 8 * PAGE, PROT_READ));
		printf(": %s\n", strerror(errno));
	} else if (!strcmp(mode, "advice")) {
		memory[0] = 3;
		printf("%d", madvise(memory, PAGE, MADV_DONTNEED));
		printf(" %d", memory[0]);
		printf(" %d %d", mlock(memory, PAGE), munlock(memory, PAGE));
		printf(" %d", madvise(memory, PAGE, 12345));
		printf(" %s\n", strerror(errno));
	} else if (!strcmp(mode, "heap")) {
		char *blocks[64];

		for (int i = 0; i < 64; i++)
			memset(blocks[i] = malloc(1000 << (i % 12)), i, 1000);
		long sum = 0;

		for (int i = 0; i < 64; i++) {
			sum += blocks[i][999];
			free(blocks[i]);
		}
		printf("%ld\n", sum);
	} else {
		int status;

		memory[0] = 1;
		memory[PAGE] = 1;
		madvise(memory, PAGE, MADV_DONTFORK);
		pid_t child = fork();

		if (!child) {
			memory[PAGE] = 2;
			_exit(touch(memory, 0));
		}
		waitpid(child, &status, 0);
		printf("child %d, mine %d %d\n", WEXITSTATUS(status), memory[0], memory[PAGE]);
	}
	return 0;
}
