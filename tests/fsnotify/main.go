// Watches a file of a volume as viper does (WatchConfig): the directory of the file is watched, and the file is read
// again when it is written or when what its links lead to is another file. Prints "watching", and then one line for
// each content: config "...". It ends with its input.
package main

import (
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"

	"github.com/fsnotify/fsnotify"
)

func main() {
	file := filepath.Clean(os.Args[1])
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		log.Fatal(err)
	}
	real, err := filepath.EvalSymlinks(file)
	if err != nil {
		log.Fatal(err)
	}
	if err := watcher.Add(filepath.Dir(file)); err != nil {
		log.Fatal(err)
	}
	fmt.Println("watching")
	go follow(watcher, file, real)
	io.Copy(io.Discard, os.Stdin)
}

func follow(watcher *fsnotify.Watcher, file, real string) {
	for {
		select {
		case event := <-watcher.Events:
			current, _ := filepath.EvalSymlinks(file)
			written := filepath.Clean(event.Name) == file && (event.Has(fsnotify.Write) || event.Has(fsnotify.Create))
			if !written && (current == "" || current == real) {
				continue
			}
			real = current
			content, err := os.ReadFile(file)
			if err != nil {
				log.Fatal(err)
			}
			fmt.Printf("config %q\n", content)
		case err := <-watcher.Errors:
			log.Fatal(err)
		}
	}
}
