/*
 * The device files, as programs look for them. Modes: "find" (stat, access, open and their like, by path and by
 * directory), "list" (readdir), "older" (the directory /dev/sgx), "refuse" (what an SGX device refuses), "map" (mapping before an enclave exists).
 */
#define _GNU_SOURCE
#include <asm/sgx.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *outcome(int result)
{
	return result < 0 ? strerrorname_np(errno) : "fine";
}

static void find(const char *path)
{
	struct stat by_path, by_file;
	struct statx extended;
	int directory = open("/dev", O_RDONLY | O_DIRECTORY);
	int file;

	printf("%s\n", path);
	printf("  stat %s", outcome(stat(path, &by_path)));
	printf(", character device %d\n", S_ISCHR(by_path.st_mode));
	printf("  lstat %s\n", outcome(lstat(path, &by_file)));
	printf("  statx %s", outcome(statx(AT_FDCWD, path, 0, STATX_BASIC_STATS, &extended)));
	printf(", character device %d\n", S_ISCHR(extended.stx_mode));
	printf("  fstatat %s\n", outcome(fstatat(directory, path + 5, &by_file, 0)));
	printf("  access %s\n", outcome(access(path, F_OK)));
	printf("  access to read and write %s\n", outcome(access(path, R_OK | W_OK)));
	printf("  faccessat %s\n", outcome(faccessat(directory, path + 5, R_OK, AT_EACCESS)));
	file = open(path, O_RDWR | O_CLOEXEC);
	printf("  open %s", outcome(file));
	printf(", fstat %s\n", outcome(fstat(file, &by_file)));
	close(file);
	file = openat(directory, path + 5, O_RDWR);
	printf("  openat %s\n", outcome(file));
	close(file);
	file = open(path, O_RDONLY);
	printf("  open to read %s\n", outcome(file));
	close(file);
	if (chdir("/dev"))
		printf("  no /dev\n");
	file = open(path + 5, O_RDWR);
	printf("  open by name in /dev %s\n", outcome(file));
	close(file);
	close(directory);
}

static void list(DIR *directory)
{
	struct dirent *entry;

	while (directory && (entry = readdir(directory)))
		printf(" %s%s", entry->d_name, entry->d_type == DT_DIR ? "/" : "");
	printf("\n");
}

static void older(void)
{
	struct stat by_path, by_file;
	DIR *directory = opendir("/dev/sgx");
	int file = directory ? dirfd(directory) : -1;
	long second;

	printf("stat %s", outcome(stat("/dev/sgx", &by_path)));
	printf(", directory %d\n", S_ISDIR(by_path.st_mode));
	printf("fstat %s", outcome(fstat(file, &by_file)));
	printf(", the same %d\n", by_path.st_dev == by_file.st_dev && by_path.st_ino == by_file.st_ino);
	printf("entries");
	list(directory);
	rewinddir(directory);
	printf("again");
	list(directory);
	rewinddir(directory);
	readdir(directory);
	second = telldir(directory);
	readdir(directory);
	seekdir(directory, second);
	printf("from the second");
	list(directory);
	printf("by a copy");
	directory = fdopendir(dup(file));
	rewinddir(directory);
	list(directory);
	printf("enclave by directory %s\n", outcome(openat(file, "enclave", O_RDWR)));
	printf("nothing by directory %s\n", outcome(openat(file, "nothing", O_RDWR)));
	printf("open to write %s\n", outcome(open("/dev/sgx", O_RDWR)));
	printf("access %s, ", outcome(access("/dev/sgx/", R_OK | X_OK)));
	printf("of what is not there %s\n", outcome(access("/dev/sgx/nothing", F_OK)));
}

int main(int argc, char **argv)
{
	const char *mode = argc > 1 ? argv[1] : "";
	struct stat node;

	if (!strcmp(mode, "find")) {
		find("/dev/sgx_enclave");
		find("/dev/sgx_provision");
		find("/dev/sgx/enclave");
		find("/dev/sgx/provision");
	} else if (!strcmp(mode, "list")) {
		DIR *directory = opendir("/dev");
		struct dirent *entry;
		int enclave = 0, provision = 0, null = 0;

		while (directory && (entry = readdir(directory))) {
			enclave += !strcmp(entry->d_name, "sgx_enclave");
			provision += !strcmp(entry->d_name, "sgx_provision");
			null += !strcmp(entry->d_name, "null");
		}
		printf("enclave %d, provision %d, null %d\n", enclave, provision, null);
	} else if (!strcmp(mode, "older")) {
		older();
	} else if (!strcmp(mode, "refuse")) {
		int file = open("/dev/sgx_enclave", O_RDWR);
		struct sgx_enclave_init init = { 0 };
		struct sgx_enclave_add_pages add = { 0 };

		printf("open %s\n", outcome(file));
		printf("another magic %s\n", outcome(ioctl(file, _IO(0xA5, 0))));
		printf("unknown number %s\n", outcome(ioctl(file, _IO(SGX_MAGIC, 0x7f))));
		printf("init before create %s\n", outcome(ioctl(file, SGX_IOC_ENCLAVE_INIT, &init)));
		printf("add before create %s\n", outcome(ioctl(file, SGX_IOC_ENCLAVE_ADD_PAGES, &add)));
		printf("create from nowhere %s\n", outcome(ioctl(file, SGX_IOC_ENCLAVE_CREATE, NULL)));
	} else {
		int file = open("/dev/sgx_enclave", O_RDWR);
		void *memory = mmap(NULL, 4096, PROT_READ, MAP_SHARED, file, 0);

		printf("shared %s\n", outcome(memory == MAP_FAILED ? -1 : 0));
		printf("unmapped %s\n", outcome(munmap(memory, 4096)));
		memory = mmap(NULL, 4096, PROT_EXEC, MAP_SHARED, file, 0);
		printf("executable %s\n", outcome(memory == MAP_FAILED ? -1 : 0));
		memory = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, file, 0);
		printf("private %s\n", outcome(memory == MAP_FAILED ? -1 : 0));
	}
	return stat("/dev/null", &node);
}
