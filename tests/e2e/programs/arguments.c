/*
 * Prints its arguments, the variables of its environment that begin with E2E_, and what the auxiliary vector
 * says about it. Whatever is put into a process before it starts must not show here.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/auxv.h>
#include <unistd.h>

extern char **environ;

int main(int argc, char **argv)
{
	printf("%d arguments\n", argc);
	for (int i = 1; i < argc; i++)
		printf("[%s]\n", argv[i]);
	for (char **variable = environ; *variable; variable++)
		if (!strncmp(*variable, "E2E_", 4))
			printf("%s\n", *variable);
	printf("name %s\n", program_invocation_short_name);
	printf("page size %lu, clock ticks %lu, secure %lu\n", getauxval(AT_PAGESZ), getauxval(AT_CLKTCK),
	       getauxval(AT_SECURE));
	printf("uid %d %lu, gid %d %lu\n", getuid(), getauxval(AT_EUID), getgid(), getauxval(AT_EGID));
	return 0;
}
