/* Says whether it has the terminal that it was started on, and in the foreground. */
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

int main(void)
{
	struct termios settings;
	struct winsize size;
	const char *name = ttyname(0);

	printf("terminals: %d %d %d\n", isatty(0), isatty(1), isatty(2));
	printf("named: %d\n", name && !strncmp(name, "/dev/", 5));
	printf("in the foreground: %d\n", tcgetpgrp(0) == getpgrp());
	printf("settings: %d, size: %d\n", tcgetattr(0, &settings), ioctl(0, TIOCGWINSZ, &size));
	return 5;
}
