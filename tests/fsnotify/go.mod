// A program that watches a file as many Go programs do, for tests/system/test_inotify.py.
module fusevol/tests/fsnotify

go 1.24.0

require github.com/fsnotify/fsnotify v1.9.0

require golang.org/x/sys v0.40.0 // indirect
